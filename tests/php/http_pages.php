<?php

// What http_worker.php and http_proto_worker.php answer, by path.

declare(strict_types=1);

namespace Trailboss\Php;

require_once __DIR__ . '/http_exchange.php';

/** Every uploaded file with its content. */
function read_uploads(mixed $tree): mixed
{
    if (!\is_array($tree)) {
        return $tree;
    }
    if (isset($tree['tmpName']) && \is_string($tree['tmpName'])) {
        return $tree + ['content' => $tree['tmpName'] === '' ? null : \base64_encode(\file_get_contents($tree['tmpName']))];
    }
    return \array_map(read_uploads(...), $tree);
}

/** @return \Generator<string> */
function ticks(int $count, int $microseconds, int $size): \Generator
{
    for ($number = 1; $count === 0 || $number <= $count; ++$number) {
        yield $size > 0 ? \str_pad("$number", $size, '.') : "data: $number\n\n";
        if ($microseconds > 0) {
            \usleep($microseconds);
        }
    }
}

function serve(HttpWorker $worker): void
{
    $text = ['Content-Type' => ['text/plain; charset=utf-8']];
    while (($request = $worker->waitRequest()) !== null) {
        \parse_str($request->rawQuery, $query);
        switch ($request->path()) {
            case '/echo':
                $told = \get_object_vars($request);
                $told['body'] = \base64_encode($request->body);
                $told['uploads'] = read_uploads($request->uploads);
                $told['pid'] = \getmypid();
                $flags = \JSON_THROW_ON_ERROR | \JSON_INVALID_UTF8_SUBSTITUTE;
                $worker->respond(200, \json_encode($told, $flags), ['Content-Type' => ['application/json']]);
                break;
            case '/body':
                $worker->respond(200, $request->body, ['Content-Type' => ['application/octet-stream']]);
                break;
            case '/size':
                $worker->respond(200, \str_repeat('x', (int) $query['n']), $text);
                break;
            case '/status':
                $worker->respond((int) $query['n'], 'body', $text);
                break;
            case '/stream':
                $chunks = ticks((int) ($query['n'] ?? 0), (int) ($query['us'] ?? 0), (int) ($query['size'] ?? 0));
                $whole = $worker->stream(200, $chunks, ['Content-Type' => ['text/event-stream']]);
                \fwrite(\STDERR, $whole ? "stream sent\n" : "stream stopped\n");
                break;
            case '/short-stream':
                $worker->chunk(200, 'half', ['Content-Length' => ['8']]);
                $worker->raw('', '', 0);
                break;
            case '/broken-stream':
                $worker->chunk(200, 'half', $text);
                if (isset($query['die'])) {
                    exit(3);
                }
                $worker->error('broken in the middle');
                break;
            case '/early-hints':
                $worker->chunk(103, '', ['Link' => ['</style.css>; rel=preload']]);
                $worker->respond(200, 'page', $text);
                break;
            case '/trailers':
                $worker->respond(200, 'body', $text + ['Trailer' => ['X-Sum'], 'X-Sum' => ['42']]);
                break;
            case '/slow':
                \usleep((int) $query['us']);
                $worker->respond(200, (string) \getmypid(), $text);
                break;
            case '/pid':
                $worker->respond(200, (string) \getmypid(), $text);
                break;
            case '/die':
                exit(3);
            case '/die-once':
                if (!\file_exists($query['mark'])) {
                    \touch($query['mark']);
                    exit(3);
                }
                $worker->respond(200, 'second', $text);
                break;
            case '/error':
                $worker->error('the application said no');
                break;
            case '/garbage':
                \fwrite(\STDOUT, "Warning: something on standard output\n");
                $worker->respond(200, 'unreachable', $text);
                break;
            case '/bad':
                // The answer is in the body: flags and stream bits, a line feed, length of the context, the payload.
                [$flags, $bits, $length] = \array_map(intval(...), \explode(' ', \strtok($request->body, "\n")));
                $payload = \substr($request->body, \strpos($request->body, "\n") + 1);
                $worker->raw(\substr($payload, 0, $length), \substr($payload, $length), $flags, $bits);
                if (($bits & STREAM) !== 0) {
                    $worker->raw('', 'more', 0, STREAM);
                    $worker->raw('', '', 0);
                }
                break;
            default:
                $worker->respond(200, 'hello', $text);
        }
    }
}
