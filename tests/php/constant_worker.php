<?php

// The fastest jobs worker there can be in PHP: looks at nothing, answers ack. For measurements.

declare(strict_types=1);

require __DIR__ . '/goridge.php';

$worker = Trailboss\Php\Worker::create();
while ($worker->waitPayload() !== null) {
    $worker->respond('{"type":2,"data":[]}');
}
