<?php

// A consumer written for the released packages (spiral/roadrunner-jobs 4), taken from PHP_SDK_DIR. The job's name is the
// answer to give; JOBS_LOG gets a JSON line for each job.

declare(strict_types=1);

use Spiral\RoadRunner\Jobs\Consumer;

require getenv('PHP_SDK_DIR') . '/vendor/autoload.php';

$consumer = new Consumer();
while (($task = $consumer->waitTask()) !== null) {
    file_put_contents(getenv('JOBS_LOG'), json_encode([
        'id' => $task->getId(),
        'job' => $task->getName(),
        'pipeline' => $task->getPipeline(),
        'payload' => (string) $task->getPayload(),
        'headers' => (object) $task->getHeaders(),
        'tries' => $task->getHeaderLine('tries'),
    ], JSON_THROW_ON_ERROR) . "\n", FILE_APPEND | LOCK_EX);
    echo "a line that belongs on standard error\n";
    $again = $task->getHeaderLine('tries') === '';
    match ($task->getName()) {
        'fail' => $task->fail(new RuntimeException('failed as told')),
        'retry' => $again
            ? $task->withHeader('tries', '2')->withDelay(1)->fail('later', true)
            : $task->complete(),
        'ack' => method_exists($task, 'ack') ? $task->ack() : $task->complete(),
        default => $task->complete(),
    };
}
