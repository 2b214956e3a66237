<?php

// A jobs worker that writes down everything a PHP program can see of a job: the context as it came, the body, and the
// variables the server set. JOBS_LOG names the file, one JSON line for each job; every job is acknowledged.

declare(strict_types=1);

require __DIR__ . '/../../php/goridge.php';

$worker = Trailboss\Php\Worker::create();
while (($payload = $worker->waitPayload()) !== null) {
    $seen = [
        'context' => json_decode($payload->context, false, 512, JSON_THROW_ON_ERROR),
        'body' => $payload->body,
        'env' => (object) array_filter(getenv(), static fn(string $name): bool => str_starts_with($name, 'RR_') || str_starts_with($name, 'APP_'), ARRAY_FILTER_USE_KEY),
        'server' => ['RR_MODE' => $_SERVER['RR_MODE'] ?? null, 'RR_RPC' => $_SERVER['RR_RPC'] ?? null],
    ];
    file_put_contents(getenv('JOBS_LOG'), json_encode($seen, JSON_THROW_ON_ERROR) . "\n", FILE_APPEND | LOCK_EX);
    $worker->respond('{"type":2,"data":[]}');
}
