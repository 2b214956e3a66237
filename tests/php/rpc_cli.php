<?php

// php rpc_cli.php METHOD [JSON]: one call to the server named by RR_RPC, its result printed as JSON.
// The jobs methods, which know protobuf only, take JSON here too: jobs.Push {"pipeline","job","payload",…},
// jobs.PushBatch [{…},…], jobs.Pause, Resume and Destroy ["name",…], jobs.Declare {"name","driver",…},
// jobs.List and jobs.Stat nothing. Exit codes: 0 a result, 1 an answered error, 2 no answer.

declare(strict_types=1);

namespace Trailboss\Php;

require __DIR__ . '/goridge.php';

function call_jobs(Jobs $jobs, string $method, mixed $argument): mixed
{
    $job = static fn(array $job): array => [$job['pipeline'], $job['job'], $job['payload'] ?? '', $job];
    return match ($method) {
        'jobs.Push' => $jobs->push(...$job($argument)),
        'jobs.PushBatch' => $jobs->pushBatch(array_map($job, $argument)),
        'jobs.Pause' => $jobs->pause(...$argument),
        'jobs.Resume' => $jobs->resume(...$argument),
        'jobs.Destroy' => $jobs->destroy(...$argument),
        'jobs.Declare' => $jobs->declare($argument),
        'jobs.List' => $jobs->list(),
        'jobs.Stat' => $jobs->stat(),
    };
}

try {
    $method = $argv[1] ?? '';
    $argument = json_decode($argv[2] ?? 'null', true, 512, JSON_THROW_ON_ERROR);
    $rpc = Rpc::fromEnvironment();
    $result = str_starts_with($method, 'jobs.')
        ? call_jobs(new Jobs($rpc), $method, $argument)
        : $rpc->call($method, $argument);
    echo json_encode($result, JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES), "\n";
} catch (ServiceException $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);
} catch (\Throwable $error) {
    fwrite(STDERR, get_class($error) . ': ' . $error->getMessage() . "\n");
    exit(2);
}
