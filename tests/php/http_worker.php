<?php

// An HTTP worker for tests that answers in the dialect it is asked in; see http_pages.php for its pages.
// With the argument `constant` it looks at nothing and says hello: the fastest there can be in PHP, for measurements.

declare(strict_types=1);

require __DIR__ . '/http_pages.php';

if (($argv[1] ?? '') === 'constant') {
    $worker = Trailboss\Php\Worker::create();
    while ($worker->waitPayload() !== null) {
        $worker->respond('Hello, world!', '{"status":200,"headers":{"Content-Type":["text/plain"]}}', 8);
    }
    return;
}

Trailboss\Php\serve(Trailboss\Php\HttpWorker::create());
