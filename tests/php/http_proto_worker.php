<?php

// The pages of http_worker.php for a server that speaks protobuf; a request in JSON ends this worker.

declare(strict_types=1);

require __DIR__ . '/http_pages.php';

Trailboss\Php\serve(Trailboss\Php\HttpWorker::create(true));
