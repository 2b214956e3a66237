<?php

// A jobs worker in PHP. Trailboss (or RoadRunner) starts it, hands it one job at a time and replaces it when it dies.
//
// goridge.php makes this example run without Composer. An application uses the packages instead:
//     composer require spiral/roadrunner-jobs
// and its loop is the same: $consumer = new Spiral\RoadRunner\Jobs\Consumer(); while ($task = $consumer->waitTask()) …

declare(strict_types=1);

require __DIR__ . '/goridge.php';

use Trailboss\Php\Consumer;
use Trailboss\Php\Jobs;
use Trailboss\Php\Rpc;
use Trailboss\Php\Task;

function handle(Task $task): void
{
    switch ($task->name) {
        case 'greet': // payload: a name. What is echoed appears in the server's log.
            echo "Hello {$task->payload}, from PHP (pid " . getmypid() . ", attempt {$task->attempts})\n";
            break;
        case 'greet-everybody': // payload: names, one a line. A job may push further jobs.
            $greet = static fn(string $name): array => [$task->pipeline, 'greet', $name];
            (new Jobs(Rpc::fromEnvironment()))->pushBatch(array_map($greet, explode("\n", trim($task->payload))));
            break;
        case 'later': // not now: come back in five seconds, marked so that it happens once
            if (!isset($task->headers['x-seen'])) {
                $task->requeue('come back later', 5, ['x-seen' => ['1']]);
                return;
            }
            echo "It is later now\n";
            break;
        default:
            $task->nack("no such job: {$task->name}");
            return;
    }
    $task->ack();
}

$consumer = new Consumer();
while (($task = $consumer->waitTask()) !== null) {
    try {
        handle($task);
    } catch (Throwable $error) {
        fwrite(STDERR, "$error\n");
        if (!$task->isAnswered()) {
            $task->nack($error->getMessage(), requeue: true, delaySeconds: 1);
        }
    }
}
