<?php

// A server.on_init command whose first act is jobs.List: the call that once killed a whole server.
// Prints one pipeline a line and exits 0; exits 1 with the error on standard error otherwise.

declare(strict_types=1);

require __DIR__ . '/goridge.php';

try {
    foreach ((new Trailboss\Php\Jobs(Trailboss\Php\Rpc::fromEnvironment()))->list() as $name) {
        echo $name, "\n";
    }
} catch (Trailboss\Php\RpcException | Trailboss\Php\RelayException $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);
}
