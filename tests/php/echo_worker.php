<?php

// Answers every request with its own context and body, as the reference worker of the recorded dialogues does.

declare(strict_types=1);

require __DIR__ . '/goridge.php';

$worker = Trailboss\Php\Worker::create();
while (($payload = $worker->waitPayload()) !== null) {
    $worker->respond($payload->body, $payload->context);
}
