<?php

/**
 * HTTP requests and answers on top of goridge.php, in both dialects, without Composer; for tests.
 *
 * As the released SDK from 3.5 on it decides by the first request's context whether it speaks JSON or protobuf, repeats
 * the whole context with every chunk of a stream, pings after each five frames, and ends a stream it is told to stop
 * with an empty frame without codec.
 */

declare(strict_types=1);

namespace Trailboss\Php;

require_once __DIR__ . '/goridge.php';

final class StreamStopped extends \RuntimeException
{
}

final class HttpRequest
{
    /**
     * @param array<string, list<string>> $headers
     * @param array<string, string> $cookies
     * @param array<string, mixed> $attributes
     */
    public function __construct(
        public readonly string $remoteAddr,
        public readonly string $protocol,
        public readonly string $method,
        public readonly string $uri,
        public readonly array $headers,
        public readonly array $cookies,
        public readonly string $rawQuery,
        public readonly bool $parsed,
        public readonly mixed $uploads,
        public readonly array $attributes,
        public readonly string $body,
    ) {
    }

    public function path(): string
    {
        $path = \parse_url($this->uri, \PHP_URL_PATH);
        if ($path === false) {
            throw new \InvalidArgumentException("Unable to parse URI: {$this->uri}");
        }
        return $path ?? '';
    }

    public function header(string $name): string
    {
        return \implode(', ', $this->headers[$name] ?? []);
    }
}

final class HttpWorker
{
    private const PING_EVERY = 5;

    private ?bool $isProto = null;
    private Worker $worker;
    private int $framesSent = 0;
    private bool $pinged = false;

    public function __construct(private Relay $relay, private ?bool $onlyProto = null)
    {
        $this->worker = new Worker($relay);
    }

    public static function create(?bool $onlyProto = null): HttpWorker
    {
        \ob_start(static function (string $chunk): string {
            \fwrite(\STDERR, $chunk);
            return '';
        }, 1);
        return new HttpWorker(Relay::create(\getenv('RR_RELAY') ?: 'pipes'), $onlyProto);
    }

    /** The next request; null when the server asks this worker to end. */
    public function waitRequest(): ?HttpRequest
    {
        $payload = $this->worker->waitPayload();
        if ($payload === null) {
            return null;
        }
        $this->framesSent = 0;
        $this->pinged = false;
        $this->isProto ??= \json_decode($payload->context) === null;
        if ($this->onlyProto !== null && $this->onlyProto !== $this->isProto) {
            throw new \RuntimeException('asked in the other dialect');
        }
        return $this->isProto
            ? ProtoDialect::decode($payload->context, $payload->body)
            : self::decodeJson($payload->context, $payload->body);
    }

    /**
     * A whole answer.
     *
     * @param array<string, list<string>> $headers
     */
    public function respond(int $status, string $body = '', array $headers = []): void
    {
        $this->send($this->context($status, $headers), $body, $this->codec(), 0);
    }

    /**
     * One frame of an answer that goes on; an interim answer, too.
     *
     * @param array<string, list<string>> $headers
     */
    public function chunk(int $status, string $body = '', array $headers = []): void
    {
        $this->listen();
        $bits = STREAM;
        if ($this->framesSent > 0 && $this->framesSent % self::PING_EVERY === 0 && !$this->pinged) {
            $bits |= STREAM_PING;
            $this->pinged = true;
        }
        ++$this->framesSent;
        $this->send($this->context($status, $headers), $body, $this->codec(), $bits);
    }

    /**
     * An answer chunk by chunk; true if it was sent to its end, false if the server wanted no more.
     *
     * @param iterable<string> $chunks
     * @param array<string, list<string>> $headers
     */
    public function stream(int $status, iterable $chunks, array $headers = []): bool
    {
        try {
            foreach ($chunks as $chunk) {
                $this->chunk($status, $chunk, $headers);
            }
        } catch (StreamStopped) {
            $this->raw('', '', 0);
            return false;
        }
        $this->raw('', '', 0);
        return true;
    }

    /** Whatever the caller thinks an answer is. */
    public function raw(string $context, string $body, int $flags, int $bits = 0): void
    {
        $this->send($context, $body, $flags, $bits);
    }

    public function error(string $text): void
    {
        $this->worker->error($text);
    }

    /** @param array<string, list<string>> $headers */
    public function context(int $status, array $headers): string
    {
        if ($this->isProto) {
            return ProtoDialect::encode($status, $headers);
        }
        return \json_encode(['status' => $status, 'headers' => (object) $headers], \JSON_THROW_ON_ERROR);
    }

    public function codec(): int
    {
        return $this->isProto ? FLAG_PROTO : FLAG_JSON;
    }

    /** Between two chunks: only once a ping was sent there may be something to hear on pipes. */
    private function listen(): void
    {
        if (!$this->pinged || !$this->relay->hasFrame()) {
            return;
        }
        $frame = $this->relay->receive();
        if (($frame->stream & STREAM_STOP) !== 0) {
            throw new StreamStopped();
        }
        if (($frame->stream & STREAM_PONG) === 0) {
            throw new RelayException('A frame that is neither STOP nor PONG inside a stream');
        }
        $this->pinged = false;
    }

    private function send(string $context, string $body, int $flags, int $bits): void
    {
        $this->relay->send(new Frame($context . $body, [\strlen($context)], $flags, $bits));
    }

    private static function decodeJson(string $context, string $body): HttpRequest
    {
        $value = \json_decode($context, true, 512, \JSON_THROW_ON_ERROR);
        return new HttpRequest(
            $value['remoteAddr'],
            $value['protocol'],
            $value['method'],
            $value['uri'],
            (array) ($value['headers'] ?? []),
            (array) ($value['cookies'] ?? []),
            $value['rawQuery'],
            $value['parsed'],
            $value['uploads'] ?? null,
            (array) ($value['attributes'] ?? []),
            $body,
        );
    }
}

/** The messages http.v1.Request and http.v1.Response, written by hand. */
final class ProtoDialect
{
    public static function decode(string $context, string $body): HttpRequest
    {
        $texts = \array_fill(1, 10, '');
        $maps = [5 => [], 6 => [], 10 => []];
        foreach (self::fields($context) as [$number, $value]) {
            if (isset($maps[$number])) {
                [$name, $values] = self::entry($value);
                $maps[$number][$name] = $values;
            } else {
                $texts[$number] = $value;
            }
        }
        $first = static fn (array $values): string => \implode(',', $values);
        return new HttpRequest(
            $texts[1],
            $texts[2],
            $texts[3],
            $texts[4],
            $maps[5],
            \array_map($first, $maps[6]),
            $texts[7],
            (bool) $texts[8],
            $texts[9] === '' ? null : \json_decode($texts[9], true, 512, \JSON_THROW_ON_ERROR),
            \array_map(static fn (array $values): string => $values[0] ?? '', $maps[10]),
            $body,
        );
    }

    /** @param array<string, list<string>> $headers */
    public static function encode(int $status, array $headers): string
    {
        $out = $status === 0 ? '' : "\x08" . self::varint($status);
        foreach ($headers as $name => $values) {
            $list = '';
            foreach ($values as $value) {
                $list .= "\x0a" . self::sized($value);
            }
            $out .= "\x12" . self::sized("\x0a" . self::sized((string) $name) . "\x12" . self::sized($list));
        }
        return $out;
    }

    /** @return array{string, list<string>} */
    private static function entry(string $data): array
    {
        $name = '';
        $values = [];
        foreach (self::fields($data) as [$number, $value]) {
            if ($number === 1) {
                $name = $value;
            } else {
                foreach (self::fields($value) as [, $item]) {
                    $values[] = $item;
                }
            }
        }
        return [$name, $values];
    }

    /** @return \Generator<array{int, string|int}> */
    private static function fields(string $data): \Generator
    {
        for ($offset = 0; $offset < \strlen($data);) {
            $tag = self::readVarint($data, $offset);
            $value = self::readVarint($data, $offset);
            if (($tag & 7) === 2) {
                $length = $value;
                $value = \substr($data, $offset, $length);
                $offset += $length;
            }
            yield [$tag >> 3, $value];
        }
    }

    private static function readVarint(string $data, int &$offset): int
    {
        $value = 0;
        for ($shift = 0;; $shift += 7) {
            $byte = \ord($data[$offset++]);
            $value |= ($byte & 0x7F) << $shift;
            if ($byte < 0x80) {
                return $value;
            }
        }
    }

    private static function varint(int $value): string
    {
        $out = '';
        for (; $value > 0x7F; $value >>= 7) {
            $out .= \chr($value & 0x7F | 0x80);
        }
        return $out . \chr($value);
    }

    private static function sized(string $data): string
    {
        return self::varint(\strlen($data)) . $data;
    }
}
