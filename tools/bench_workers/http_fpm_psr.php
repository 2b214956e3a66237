<?php

// The PSR-7 loop of the tests for the one request that php-fpm has at hand.

declare(strict_types=1);

use Trailboss\Php\HttpRequest;

final class FpmExchange
{
    private bool $taken = false;

    public function waitRequest(): ?HttpRequest
    {
        if ($this->taken) {
            return null;
        }
        $this->taken = true;
        $headers = [];
        foreach ($_SERVER as $name => $value) {
            if (str_starts_with($name, 'HTTP_')) {
                $headers[ucwords(strtolower(strtr(substr($name, 5), '_', '-')), '-')] = [$value];
            }
        }
        return new HttpRequest(
            $_SERVER['REMOTE_ADDR'],
            $_SERVER['SERVER_PROTOCOL'],
            $_SERVER['REQUEST_METHOD'],
            "http://{$_SERVER['HTTP_HOST']}{$_SERVER['REQUEST_URI']}",
            $headers,
            $_COOKIE,
            $_SERVER['QUERY_STRING'],
            false,
            null,
            [],
            file_get_contents('php://input'),
        );
    }

    /** @param array<string, list<string>> $headers */
    public function respond(int $status, string $body, array $headers): void
    {
        http_response_code($status);
        foreach ($headers as $name => $values) {
            foreach ($values as $value) {
                header("$name: $value", false);
            }
        }
        echo $body;
    }
}

$worker = new FpmExchange();
require __DIR__ . '/../../tests/php/psr_worker.php';
