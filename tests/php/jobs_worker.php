<?php

// A jobs worker whose behaviour is chosen by the job's name; the job's payload is a JSON object of arguments.
//
//   ack, complete              answer so
//   nack                       {"message","requeue","delay"}
//   requeue                    {"message","delay","headers"}
//   fail                       {"message","requeue","delay","headers"}
//   sleep                      {"ms"}, then ack
//   echo                       {"text"} by echo, then ack: the text belongs on standard error
//   stdout                     {"text"} by fwrite(STDOUT), then ack: garbage in front of the answer
//   stderr                     {"bytes"} of 'x' lines on standard error, then ack
//   push                       {"pipeline","job","payload"} by RPC, then ack
//   error                      an ERROR frame with {"message"}
//   empty, broken, stream      an empty body, no JSON, an answer in pieces
//   stop                       asks to be replaced
//   exit                       {"code"} without an answer
//   die                        SIGKILL to itself
//   fatal                      a PHP fatal error
//   memory                     {"mb"} held for good, then ack
//   hang                       never answers
//
// JOBS_LOG names a file that gets one JSON line for each job at its start; BOOT_SLEEP_MS delays the start.

declare(strict_types=1);

namespace Trailboss\Php;

require __DIR__ . '/goridge.php';

/** @param array<string, mixed> $arguments */
function work(Task $task, array $arguments, Worker $worker): void
{
    static $held = [];
    $message = $arguments['message'] ?? 'as told';
    $delay = $arguments['delay'] ?? 0;
    $headers = $arguments['headers'] ?? [];
    switch ($task->name) {
        case 'complete':
            $task->complete();
            return;
        case 'nack':
            $task->nack($message, $arguments['requeue'] ?? false, $delay);
            return;
        case 'requeue':
            $task->requeue($message, $delay, $headers);
            return;
        case 'fail':
            $task->fail($message, $arguments['requeue'] ?? false, $delay, $headers);
            return;
        case 'sleep':
            \usleep(1000 * $arguments['ms']);
            break;
        case 'echo':
            echo $arguments['text'] ?? "echoed\n";
            break;
        case 'stdout':
            \fwrite(\STDOUT, $arguments['text'] ?? "garbage\n");
            break;
        case 'stderr':
            \fwrite(\STDERR, \str_repeat(\str_repeat('x', 79) . "\n", \intdiv($arguments['bytes'] ?? 80, 80)));
            break;
        case 'push':
            $jobs = new Jobs(Rpc::fromEnvironment());
            $jobs->push($arguments['pipeline'] ?? $task->pipeline, $arguments['job'] ?? 'ack', $arguments['payload'] ?? '{}');
            break;
        case 'error':
            $task->leave();
            $worker->error($message);
            return;
        case 'empty':
        case 'broken':
            $task->leave();
            $worker->respond($task->name === 'empty' ? '' : '{"type":');
            return;
        case 'stream':
            $task->leave();
            $worker->respond('{"type":2,', last: false);
            $worker->respond('"data":[]}');
            return;
        case 'stop':
            $task->leave();
            $worker->stop();
            return;
        case 'exit':
            exit($arguments['code'] ?? 3);
        case 'die':
            \posix_kill(\getmypid(), 9);
            break;
        case 'fatal':
            \this_function_does_not_exist();
        case 'memory':
            $held[] = \str_repeat('m', 1048576 * ($arguments['mb'] ?? 16));
            break;
        case 'hang':
            while (true) {
                \sleep(3600);
            }
    }
    $task->ack();
}

function record(Task $task): void
{
    $path = \getenv('JOBS_LOG');
    if ($path === false) {
        return;
    }
    $line = ['id' => $task->id, 'job' => $task->name, 'pipeline' => $task->pipeline, 'attempts' => $task->attempts,
        'headers' => (object) $task->headers, 'payload' => $task->payload, 'pid' => \getmypid(), 'time' => \microtime(true)];
    \file_put_contents($path, \json_encode($line, \JSON_INVALID_UTF8_SUBSTITUTE) . "\n", \FILE_APPEND | \LOCK_EX);
}

\usleep(1000 * (int) \getenv('BOOT_SLEEP_MS'));
$consumer = new Consumer();
while (($task = $consumer->waitTask()) !== null) {
    record($task);
    work($task, (array) \json_decode($task->payload, true), $consumer->worker);
}
