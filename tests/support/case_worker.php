<?php

// The PHP counterpart of case_worker.py: the same paths, but for those that need bytes inside of a frame.

declare(strict_types=1);

namespace Trailboss\Php;

require __DIR__ . '/../php/http_exchange.php';

function finish(string $how): void
{
    if ($how === 'kill') {
        \posix_kill(\getmypid(), 9);
    }
    exit((int) $how);
}

/** The error of a call about the own pool, or nothing. */
function ask(string $method): string
{
    try {
        Rpc::fromEnvironment()->call($method, 'http');
    } catch (RpcException $failure) {
        return $failure->getMessage();
    }
    return '';
}

$worker = HttpWorker::create();
$kept = [];
while (($request = $worker->waitRequest()) !== null) {
    \parse_str($request->rawQuery, $query);
    $body = (string) \getmypid();
    switch ($request->path()) {
        case '/leave':
            $worker->respond(200, \str_repeat('x', (int) $query['n']));
            finish($query['how']);
            break;
        case '/garbage':
            $text = \str_repeat('<br />Warning: no frame ', (int) $query['n']);
            $text = \substr($text, 0, (int) $query['n']);
            if ($query['where'] !== 'after') {
                \fwrite(\STDOUT, $text);
            }
            if ($query['where'] === 'alone') {
                \sleep(3600);
            }
            $worker->respond(200, 'good');
            if ($query['where'] === 'after') {
                \fwrite(\STDOUT, $text);
            }
            continue 2;
        case '/children':
            $pipes = [];
            foreach (['sleep 600', 'setsid sleep 600'] as $command) {
                // Descriptors that are not named are those of this process.
                $children[] = \proc_open('exec ' . $command, [], $pipes);
            }
            if (isset($query['how'])) {
                \posix_kill(\getmypid(), 9); // exit() would wait for them
            }
            break;
        case '/orphans':
            \shell_exec('for number in 1 2 3 4 5; do sleep 0.05 >/dev/null 2>&1 </dev/null & done');
            break;
        case '/keep':
            $kept[] = \str_repeat('m', (int) $query['mb'] << 20);
            break;
        case '/slow':
            \usleep(1000 * (int) $query['ms']);
            break;
        case '/call':
            $body = ask($query['method']);
            break;
    }
    $worker->respond(200, $body);
}
