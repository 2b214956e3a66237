<?php

// A web page from a PHP worker that lives on between requests. With Composer use spiral/roadrunner-http and any PSR-7 library
// instead of the few lines here; nothing changes on the server's side.

declare(strict_types=1);

require __DIR__ . '/goridge.php';

$worker = Trailboss\Php\Worker::create();
$served = 0;
while (($request = $worker->waitPayload()) !== null) {
    // The context is the request's head as JSON; the body is the request's own.
    $head = json_decode($request->context, true, 64, JSON_THROW_ON_ERROR);
    parse_str($head['rawQuery'], $query);
    $name = htmlspecialchars((string) ($query['name'] ?? 'World'), ENT_QUOTES);
    $served++;
    $page = "<!doctype html><title>PHP</title><h1>Hello $name, from PHP</h1>"
        . '<p>' . $head['method'] . ' ' . htmlspecialchars($head['uri'], ENT_QUOTES) . '</p>'
        . '<p>process ' . getmypid() . ", request $served of this worker</p>\n";
    $answer = ['status' => 200, 'headers' => ['Content-Type' => ['text/html; charset=utf-8']]];
    $worker->respond($page, json_encode($answer, JSON_THROW_ON_ERROR), 8);
}
