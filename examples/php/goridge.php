<?php

/**
 * A worker and an RPC client for Trailboss and RoadRunner in one file, without Composer, for tests and examples.
 *
 * It speaks what the released PHP packages speak, byte for byte, and keeps their habits that a server has to
 * live with: on pipes a frame's first 12 bytes are fetched by a single fread, the checksum of what arrives is
 * never looked at, echo is turned to standard error by an output buffer while fwrite(STDOUT, …) is not.
 * With GORIDGE_SPIN_AT_EOF=1 it also keeps their worst one: a stream that ends inside a frame's payload on
 * pipes makes the worker spin for ever (the default here is an exception).
 *
 * Applications use the Composer packages spiral/goridge, spiral/roadrunner-worker and spiral/roadrunner-jobs.
 */

declare(strict_types=1);

namespace Trailboss\Php;

const FLAG_CONTROL = 0x01;
const FLAG_RAW = 0x04;
const FLAG_JSON = 0x08;
const FLAG_ERROR = 0x40;
const FLAG_PROTO = 0x80;

const STREAM = 0x01;
const STREAM_STOP = 0x02;
const STREAM_PING = 0x04;
const STREAM_PONG = 0x08;

class RelayException extends \RuntimeException
{
}

class RpcException extends \RuntimeException
{
}

/** The server answered a call with an error; the connection stays usable. */
final class ServiceException extends RpcException
{
}

final class Frame
{
    /** @param int[] $options */
    public function __construct(
        public string $payload,
        public array $options = [],
        public int $flags = 0,
        public int $stream = 0,
    ) {
    }

    public function pack(): string
    {
        $head = \pack('CCV', 0x10 | (3 + \count($this->options)), $this->flags, \strlen($this->payload));
        return $head . \pack('VCC', \crc32($head), $this->stream, 0)
            . ($this->options === [] ? '' : \pack('V*', ...$this->options)) . $this->payload;
    }
}

/** Frames in, frames out; `readExactly` is what differs between pipes and sockets. */
abstract class Relay
{
    abstract protected function readHeader(): string;

    abstract protected function readExactly(int $length): string;

    abstract protected function writeAll(string $data): void;

    abstract public function hasFrame(): bool;

    public static function create(string $address): Relay
    {
        if ($address === 'pipes') {
            return new PipesRelay(\STDIN, \STDOUT);
        }
        if (\preg_match('#^(tcp|unix)://(.+)$#', $address) === 1) {
            return new SocketRelay($address);
        }
        throw new RelayException("unsupported relay '$address'");
    }

    public function receive(): Frame
    {
        $header = \unpack('Cwords/Cflags/Vlength/Vcrc/Cstream/Creserved', $this->readHeader());
        $optionBytes = (($header['words'] & 0x0F) - 3) * 4;
        $options = $optionBytes > 0 ? \array_values(\unpack('V*', $this->readExactly($optionBytes))) : [];
        $payload = $header['length'] > 0 ? $this->readExactly($header['length']) : '';
        return new Frame($payload, $options, $header['flags'], $header['stream']);
    }

    public function send(Frame $frame): void
    {
        $this->writeAll($frame->pack());
    }
}

final class PipesRelay extends Relay
{
    private bool $spinAtEof;

    /**
     * @param resource $input
     * @param resource $output
     */
    public function __construct(private $input, private $output)
    {
        $this->spinAtEof = \getenv('GORIDGE_SPIN_AT_EOF') === '1';
    }

    public function hasFrame(): bool
    {
        $read = [$this->input];
        $write = $except = null;
        return \stream_select($read, $write, $except, 0) > 0;
    }

    protected function readHeader(): string
    {
        $header = \fread($this->input, 12);
        if ($header === false || \strlen($header) !== 12) {
            throw new RelayException('Incorrect header size');
        }
        return $header;
    }

    protected function readExactly(int $length): string
    {
        $data = '';
        while (\strlen($data) < $length) {
            $piece = \fread($this->input, \min($length - \strlen($data), 65536));
            if ($piece === false || ($piece === '' && !$this->spinAtEof && \feof($this->input))) {
                throw new RelayException('The stream ended inside a frame');
            }
            $data .= $piece;
        }
        return $data;
    }

    protected function writeAll(string $data): void
    {
        for ($written = 0; $written < \strlen($data); $written += $count) {
            $count = @\fwrite($this->output, $written === 0 ? $data : \substr($data, $written));
            if ($count === false || $count === 0) {
                throw new RelayException('Unable to write to the stream');
            }
        }
    }
}

final class SocketRelay extends Relay
{
    /** @var resource|null */
    private $socket = null;

    public function __construct(private string $address)
    {
    }

    public function close(): void
    {
        if ($this->socket !== null) {
            \fclose($this->socket);
            $this->socket = null;
        }
    }

    public function hasFrame(): bool
    {
        $read = [$this->connected()];
        $write = $except = null;
        return \stream_select($read, $write, $except, 0) > 0;
    }

    protected function readHeader(): string
    {
        return $this->readExactly(12);
    }

    protected function readExactly(int $length): string
    {
        $socket = $this->connected();
        $data = '';
        while (\strlen($data) < $length) {
            $piece = \fread($socket, $length - \strlen($data));
            if ($piece === false || ($piece === '' && \feof($socket))) {
                throw new RelayException('Unable to read from the socket');
            }
            $data .= $piece;
        }
        return $data;
    }

    protected function writeAll(string $data): void
    {
        $socket = $this->connected();
        for ($written = 0; $written < \strlen($data); $written += $count) {
            $count = @\fwrite($socket, \substr($data, $written));
            if ($count === false || $count === 0) {
                throw new RelayException('Unable to write to the socket');
            }
        }
    }

    /** @return resource */
    private function connected()
    {
        if ($this->socket !== null) {
            return $this->socket;
        }
        // As the released packages: 11 tries within a millisecond, so in effect none; the server is there first.
        for ($try = 0; $try <= 10; ++$try) {
            $socket = @\stream_socket_client($this->address, $code, $message, 5.0);
            if ($socket !== false) {
                \stream_set_timeout($socket, 86400 * 365);
                return $this->socket = $socket;
            }
            \usleep(100);
        }
        throw new RelayException("unable to establish connection {$this->address}: $message ($code)");
    }
}

final class Payload
{
    public function __construct(public string $body, public string $context = '')
    {
    }
}

final class Worker
{
    public function __construct(private Relay $relay)
    {
    }

    /** The worker that RR_RELAY asks for; what the application echoes goes to standard error from here on. */
    public static function create(): Worker
    {
        \ob_start(static function (string $chunk): string {
            \fwrite(\STDERR, $chunk);
            return '';
        }, 1);
        return new Worker(Relay::create(\getenv('RR_RELAY') ?: 'pipes'));
    }

    /** The next request; null when the server asks this worker to end. */
    public function waitPayload(): ?Payload
    {
        while (true) {
            $frame = $this->relay->receive();
            if (($frame->flags & FLAG_CONTROL) !== 0) {
                if (!$this->handleControl($frame->payload)) {
                    return null;
                }
            } elseif (($frame->stream & (STREAM_STOP | STREAM_PONG)) === 0) {
                $contextLength = $frame->options[0] ?? throw new RelayException('A request without its option');
                return new Payload(\substr($frame->payload, $contextLength), \substr($frame->payload, 0, $contextLength));
            }
        }
    }

    public function respond(string $body, string $context = '', int $flags = 0, bool $last = true): void
    {
        $this->relay->send(new Frame($context . $body, [\strlen($context)], $flags, $last ? 0 : STREAM));
    }

    public function error(string $text): void
    {
        $this->relay->send(new Frame($text, [], FLAG_ERROR));
    }

    /** Ask to be replaced; the server runs the request at hand on another worker. */
    public function stop(): void
    {
        $this->respond('', '{"stop":true}');
    }

    private function handleControl(string $text): bool
    {
        $control = \json_decode($text, true, 512, \JSON_THROW_ON_ERROR);
        if (!empty($control['stop'])) {
            return false;
        }
        if (empty($control['pid'])) {
            throw new RelayException('Invalid termination packet, undefined control package');
        }
        $this->relay->send(new Frame(\json_encode(['pid' => \getmypid()], \JSON_THROW_ON_ERROR), [], FLAG_CONTROL));
        return true;
    }
}

/** One job; exactly one of its verbs has to be called. */
final class Task
{
    private bool $answered = false;

    /** @param array<string, list<string>> $headers */
    public function __construct(
        private Worker $worker,
        public readonly string $id,
        public readonly string $name,
        public readonly string $payload,
        public readonly array $headers,
        public readonly string $pipeline,
        public readonly string $driver,
        public readonly string $queue,
        public readonly int $attempts,
    ) {
    }

    public function isAnswered(): bool
    {
        return $this->answered;
    }

    public function ack(): void
    {
        $this->answer(2, []);
    }

    /** What older packages send instead of ack. */
    public function complete(): void
    {
        $this->answer(0, []);
    }

    public function nack(string $message, bool $requeue = false, int $delaySeconds = 0): void
    {
        $this->answer(3, ['message' => $message, 'requeue' => $requeue, 'delay_seconds' => $delaySeconds]);
    }

    /** @param array<string, list<string>> $headers */
    public function requeue(string $message, int $delaySeconds = 0, array $headers = []): void
    {
        $data = ['message' => $message, 'delay_seconds' => $delaySeconds];
        $this->answer(4, $headers === [] ? $data : $data + ['headers' => $headers]);
    }

    /**
     * What older packages send instead of nack and requeue.
     *
     * @param array<string, list<string>> $headers
     */
    public function fail(string $message, bool $requeue = false, int $delaySeconds = 0, array $headers = []): void
    {
        $data = ['message' => $message, 'requeue' => $requeue, 'delay_seconds' => $delaySeconds];
        $this->answer(1, $headers === [] ? $data : $data + ['headers' => $headers]);
    }

    /** Mark as answered without an answer; for programs that talk to the worker themselves. */
    public function leave(): void
    {
        $this->answered = true;
    }

    /** @param array<string, mixed> $data */
    private function answer(int $type, array $data): void
    {
        if ($this->answered) {
            throw new \LogicException('The task has been answered already');
        }
        $this->answered = true;
        $this->worker->respond(\json_encode(['type' => $type, 'data' => $data], \JSON_THROW_ON_ERROR));
    }
}

final class Consumer
{
    public readonly Worker $worker;

    public function __construct(?Worker $worker = null)
    {
        $this->worker = $worker ?? Worker::create();
    }

    public function waitTask(): ?Task
    {
        $payload = $this->worker->waitPayload();
        if ($payload === null) {
            return null;
        }
        $context = \json_decode($payload->context, true, 512, \JSON_THROW_ON_ERROR);
        return new Task(
            $this->worker,
            $context['id'],
            $context['job'],
            $payload->body,
            (array) $context['headers'],
            $context['pipeline'] ?? 'unknown',
            $context['driver'] ?? 'unknown',
            $context['queue'] ?? 'unknown',
            (int) ($context['attempts'] ?? $context['headers']['x-trailboss-attempts'][0] ?? 1),
        );
    }
}

/** One call at a time over one connection, made at the first call and never again. */
final class Rpc
{
    private static int $sequence = 1;
    private SocketRelay $relay;

    public function __construct(private string $address)
    {
        $this->relay = new SocketRelay($address);
    }

    public static function fromEnvironment(): Rpc
    {
        return new Rpc(\getenv('RR_RPC') ?: 'tcp://127.0.0.1:6001');
    }

    /** A call whose argument and result are JSON values. */
    public function call(string $method, mixed $argument): mixed
    {
        $json = \json_encode($argument, \JSON_THROW_ON_ERROR);
        $result = $this->exchange($method, $json, FLAG_JSON);
        return \json_decode($result, true, 512, \JSON_THROW_ON_ERROR);
    }

    /** A call whose argument and result are encoded protobuf messages. */
    public function callProto(string $method, string $message): string
    {
        return $this->exchange($method, $message, FLAG_PROTO);
    }

    private function exchange(string $method, string $argument, int $codec): string
    {
        $sequence = self::$sequence++;
        $this->relay->send(new Frame($method . $argument, [$sequence, \strlen($method)], $codec));
        $frame = $this->relay->receive();
        if (\count($frame->options) !== 2) {
            throw new RpcException('Invalid RPC frame, options missing');
        }
        if ($frame->options[0] !== $sequence) {
            throw new RpcException('Invalid RPC frame, sequence mismatch');
        }
        $body = \substr($frame->payload, $frame->options[1]);
        if (($frame->flags & FLAG_ERROR) !== 0) {
            $text = \str_replace(["\t", "\n"], ' ', $body);
            throw new ServiceException("Error '$text' on {$this->address}");
        }
        return $body;
    }
}

/** Just enough protobuf for jobs.*: varints, bytes, maps of strings and of string lists. */
final class Proto
{
    public static function varint(int $value): string
    {
        $out = '';
        do {
            $low = $value & 0x7F;
            $value = ($value >> 7) & 0x01FFFFFFFFFFFFFF;
            $out .= \chr($low | ($value === 0 ? 0 : 0x80));
        } while ($value !== 0);
        return $out;
    }

    /** A field of type string, bytes or message; always written, as members of lists are. */
    public static function bytes(int $number, string $value): string
    {
        return self::varint($number << 3 | 2) . self::varint(\strlen($value)) . $value;
    }

    /** A string field, left out when empty. */
    public static function string(int $number, string $value): string
    {
        return $value === '' ? '' : self::bytes($number, $value);
    }

    /** An integer field, left out when zero. */
    public static function int(int $number, int $value): string
    {
        return $value === 0 ? '' : self::varint($number << 3) . self::varint($value);
    }

    /**
     * Field number → list of values (int for varints, string for the rest), in order of arrival.
     *
     * @return array<int, list<int|string>>
     */
    public static function decode(string $message): array
    {
        $fields = [];
        $offset = 0;
        while ($offset < \strlen($message)) {
            $tag = self::readVarint($message, $offset);
            $value = match ($tag & 7) {
                0 => self::readVarint($message, $offset),
                1 => self::take($message, $offset, 8),
                2 => self::take($message, $offset, self::readVarint($message, $offset)),
                5 => self::take($message, $offset, 4),
                default => throw new RpcException('Unknown protobuf wire type'),
            };
            $fields[$tag >> 3][] = $value;
        }
        return $fields;
    }

    private static function readVarint(string $message, int &$offset): int
    {
        $value = 0;
        for ($shift = 0; $shift < 64; $shift += 7) {
            $byte = \ord(self::take($message, $offset, 1));
            $value |= ($byte & 0x7F) << $shift;
            if ($byte < 0x80) {
                return $value;
            }
        }
        throw new RpcException('A protobuf number without end');
    }

    private static function take(string $message, int &$offset, int $length): string
    {
        if ($length < 0 || $offset + $length > \strlen($message)) {
            throw new RpcException('A protobuf message that ends too early');
        }
        $piece = \substr($message, $offset, $length);
        $offset += $length;
        return $piece;
    }
}

/** The methods of the jobs plugin. */
final class Jobs
{
    public function __construct(private Rpc $rpc)
    {
    }

    /**
     * Push one job and give its id.
     *
     * @param array{id?: string, headers?: array<string, list<string>>, priority?: int, delay?: int, auto_ack?: bool} $options
     */
    public function push(string $pipeline, string $job, string $payload, array $options = []): string
    {
        [$id, $message] = self::job($pipeline, $job, $payload, $options);
        $this->rpc->callProto('jobs.Push', Proto::bytes(1, $message));
        return $id;
    }

    /**
     * Push several jobs in one call and give their ids.
     *
     * @param list<array{0: string, 1: string, 2: string, 3?: array<string, mixed>}> $jobs pipeline, job, payload, options
     * @return list<string>
     */
    public function pushBatch(array $jobs): array
    {
        $ids = [];
        $request = '';
        foreach ($jobs as $job) {
            [$ids[], $message] = self::job($job[0], $job[1], $job[2], $job[3] ?? []);
            $request .= Proto::bytes(1, $message);
        }
        $this->rpc->callProto('jobs.PushBatch', $request);
        return $ids;
    }

    public function pause(string ...$pipelines): void
    {
        $this->rpc->callProto('jobs.Pause', self::pipelines($pipelines));
    }

    public function resume(string ...$pipelines): void
    {
        $this->rpc->callProto('jobs.Resume', self::pipelines($pipelines));
    }

    /** @return list<string> the pipelines that were there and are gone */
    public function destroy(string ...$pipelines): array
    {
        return Proto::decode($this->rpc->callProto('jobs.Destroy', self::pipelines($pipelines)))[1] ?? [];
    }

    /** @param array<string, string> $pipeline name, driver and the driver's options */
    public function declare(array $pipeline): void
    {
        $request = '';
        foreach ($pipeline as $key => $value) {
            $request .= Proto::bytes(1, Proto::bytes(1, $key) . Proto::bytes(2, $value));
        }
        $this->rpc->callProto('jobs.Declare', $request);
    }

    /** @return list<string> */
    public function list(): array
    {
        return Proto::decode($this->rpc->callProto('jobs.List', ''))[1] ?? [];
    }

    /** @return list<array{pipeline: string, driver: string, queue: string, active: int, delayed: int, reserved: int, ready: bool, priority: int}> */
    public function stat(): array
    {
        $stats = [];
        foreach (Proto::decode($this->rpc->callProto('jobs.Stat', ''))[1] ?? [] as $message) {
            $fields = Proto::decode((string) $message);
            $stats[] = [
                'pipeline' => $fields[1][0] ?? '',
                'driver' => $fields[2][0] ?? '',
                'queue' => $fields[3][0] ?? '',
                'active' => $fields[4][0] ?? 0,
                'delayed' => $fields[5][0] ?? 0,
                'reserved' => $fields[6][0] ?? 0,
                'ready' => (bool) ($fields[7][0] ?? false),
                'priority' => $fields[8][0] ?? 0,
            ];
        }
        return $stats;
    }

    /**
     * @param array<string, mixed> $options
     * @return array{0: string, 1: string} id and encoded message
     */
    private static function job(string $pipeline, string $job, string $payload, array $options): array
    {
        $id = $options['id'] ?? self::newId();
        $message = Proto::string(1, $job) . Proto::string(2, $id) . Proto::string(3, $payload);
        foreach ($options['headers'] ?? [] as $name => $values) {
            $list = \implode('', \array_map(static fn(string $value) => Proto::bytes(1, $value), $values));
            $message .= Proto::bytes(4, Proto::bytes(1, (string) $name) . Proto::bytes(2, $list));
        }
        $message .= Proto::bytes(
            5,
            Proto::int(1, $options['priority'] ?? 0) . Proto::string(2, $pipeline)
                . Proto::int(3, $options['delay'] ?? 0) . Proto::int(6, (int) ($options['auto_ack'] ?? false)),
        );
        return [$id, $message];
    }

    /** @param string[] $names */
    private static function pipelines(array $names): string
    {
        return \implode('', \array_map(static fn(string $name) => Proto::bytes(1, $name), $names));
    }

    private static function newId(): string
    {
        $bytes = \random_bytes(16);
        $bytes[6] = \chr(\ord($bytes[6]) & 0x0F | 0x40);
        $bytes[8] = \chr(\ord($bytes[8]) & 0x3F | 0x80);
        return \vsprintf('%s%s-%s-%s-%s-%s%s%s', \str_split(\bin2hex($bytes), 4));
    }
}
