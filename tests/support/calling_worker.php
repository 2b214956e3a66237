<?php

// The PHP counterpart of calling_worker.py: the methods of BOOT_CALLS before its hello, and jobs named after a method.

declare(strict_types=1);

namespace Trailboss\Php;

require __DIR__ . '/../php/goridge.php';

function call(Rpc $rpc, string $when, string $method): void
{
    $began = \microtime(true);
    $error = '';
    try {
        if ($method === 'jobs.Stat') {
            (new Jobs($rpc))->stat();
        } else {
            $rpc->call($method, $method === 'jobs.Books' ? true : 'jobs');
        }
    } catch (RpcException $failure) {
        $error = $failure->getMessage();
    }
    $line = ['when' => $when, 'method' => $method, 'error' => $error, 'seconds' => \microtime(true) - $began];
    \file_put_contents((string) \getenv('CALLS'), \json_encode($line) . "\n", \FILE_APPEND | \LOCK_EX);
}

$rpc = Rpc::fromEnvironment();
foreach (\explode(' ', (string) \getenv('BOOT_CALLS')) as $method) {
    call($rpc, 'boot', $method);
}
$consumer = new Consumer();
while (($task = $consumer->waitTask()) !== null) {
    if (\str_contains($task->name, '.')) {
        call($rpc, 'job', $task->name);
    }
    $task->ack();
}
