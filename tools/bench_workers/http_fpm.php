<?php

// What php-fpm runs beside the workers: the same answers, by path. /psr does the work of tests/php/psr_worker.php.

declare(strict_types=1);

switch ($_SERVER['DOCUMENT_URI']) {
    case '/answer':
        header('Content-Type: text/plain');
        echo str_repeat('x', 102400);
        break;
    case '/stream':
        header('Content-Type: application/octet-stream');
        $part = str_repeat('x', 256 * 1024);
        for ($left = 400; $left > 0; --$left) {
            echo $part;
        }
        break;
    case '/psr':
        require __DIR__ . '/http_fpm_psr.php';
        break;
    default:
        header('Content-Type: text/plain');
        echo 'Hello, world!';
}
