<?php

// Gives recorded answers to whatever it is asked, one after the other: told_worker.php FILE, a JSON list of answers,
// each a list of frames [flags, stream, context, body] with the last two in hexadecimal.

declare(strict_types=1);

require __DIR__ . '/../../php/goridge.php';

$worker = Trailboss\Php\Worker::create();
foreach (json_decode(file_get_contents($argv[1]), true, 512, JSON_THROW_ON_ERROR) as $answer) {
    if ($worker->waitPayload() === null) {
        exit(3);
    }
    foreach ($answer as [$flags, $stream, $context, $body]) {
        if (($flags & Trailboss\Php\FLAG_ERROR) !== 0) {
            $worker->error(hex2bin($body));
        } elseif (hex2bin($context) === '{"stop":true}') {
            $worker->stop();
        } else {
            $worker->respond(hex2bin($body), hex2bin($context), $flags, ($stream & Trailboss\Php\STREAM) === 0);
        }
    }
}
exit($worker->waitPayload() === null ? 0 : 4);
