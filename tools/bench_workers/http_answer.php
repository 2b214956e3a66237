<?php

// The fastest HTTP worker there can be in PHP: looks at nothing and gives the same answer each time. For measurements.
//
//   http_answer.php constant SIZE [proto]   one frame with a body of SIZE bytes, in JSON or in RoadRunner's protobuf dialect
//   http_answer.php stream SIZE             the same in parts of 256 KiB

declare(strict_types=1);

require __DIR__ . '/../../tests/php/http_exchange.php';

const PART_BYTES = 256 * 1024;

[, $kind, $size] = $argv;
$body = $size === '13' ? 'Hello, world!' : str_repeat('x', min((int) $size, $kind === 'stream' ? PART_BYTES : PHP_INT_MAX));

if ($kind === 'stream') {
    $worker = Trailboss\Php\HttpWorker::create();
    $parts = static function () use ($size, $body): Generator {
        for ($left = (int) $size; $left > 0; $left -= PART_BYTES) {
            yield $left >= PART_BYTES ? $body : substr($body, 0, $left);
        }
    };
    while ($worker->waitRequest() !== null) {
        $worker->stream(200, $parts(), ['Content-Type' => ['application/octet-stream']]);
    }
    return;
}

$headers = ['Content-Type' => ['text/plain']];
[$context, $codec] = ($argv[3] ?? '') === 'proto'
    ? [Trailboss\Php\ProtoDialect::encode(200, $headers), Trailboss\Php\FLAG_PROTO]
    : ['{"status":200,"headers":{"Content-Type":["text/plain"]}}', Trailboss\Php\FLAG_JSON];
$worker = Trailboss\Php\Worker::create();
while ($worker->waitPayload() !== null) {
    $worker->respond($body, $context, $codec);
}
