<?php

// Runs once while the server starts (server.on_init): RPC is open, no worker runs yet. The place for migrations, cache
// warm-up, or, as here, a look at what there is. In RoadRunner 2024.2 this very call ended the whole server.

declare(strict_types=1);

require __DIR__ . '/goridge.php';

$pipelines = (new Trailboss\Php\Jobs(Trailboss\Php\Rpc::fromEnvironment()))->list();
echo 'on_init: the pipelines are ' . implode(', ', $pipelines) . "\n";
