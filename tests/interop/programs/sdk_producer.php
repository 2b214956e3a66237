<?php

// A producer written for the released packages (spiral/roadrunner-jobs 4, spiral/goridge 4), taken from PHP_SDK_DIR;
// calls the server of RR_RPC and prints what it found as JSON.

declare(strict_types=1);

use Spiral\Goridge\RPC\RPC;
use Spiral\RoadRunner\Jobs\Exception\JobsException;
use Spiral\RoadRunner\Jobs\Jobs;
use Spiral\RoadRunner\Jobs\Queue\MemoryCreateInfo;

require getenv('PHP_SDK_DIR') . '/vendor/autoload.php';

$rpc = RPC::create(getenv('RR_RPC'));
$jobs = new Jobs($rpc);
$found = ['version' => $rpc->call('rpc.Version', true), 'before' => array_keys(iterator_to_array($jobs))];

$queue = $jobs->create(new MemoryCreateInfo('fresh', 5, 100));
$found['declared paused'] = $queue->isPaused();
$first = $queue->dispatch($queue->create('ack', '{"n":1}')->withHeader('tenant', 'a'));
$found['first'] = $first->getId();
$many = $queue->dispatchMany($queue->create('fail', ''), $queue->create('retry', 'again'), $queue->create('complete', 'last'));
$found['many'] = array_map(static fn($task): string => $task->getId(), [...$many]);
$found['waiting'] = $queue->getPipelineStat()->getActive();
$queue->resume();
$found['resumed paused'] = $queue->isPaused();
$found['after'] = array_keys(iterator_to_array($jobs));
try {
    $jobs->connect('nowhere')->push('ack', '');
} catch (JobsException $error) {
    $found['error'] = $error->getMessage();
}
echo json_encode($found, JSON_THROW_ON_ERROR), "\n";
