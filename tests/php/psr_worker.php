<?php

// A PSR-7 loop: each request becomes a server request with all its parts, each answer a response of which a new one is
// made for every change. With Nyholm's PSR-7 where Debian's package php-nyholm-psr7 is installed, else with the small
// classes below, which do the same work. A URI that the library cannot read ends the worker, as it does in real ones.

declare(strict_types=1);

use Trailboss\Php\HttpRequest;
use Trailboss\Php\HttpWorker;

require __DIR__ . '/http_exchange.php';

final class SmallUri
{
    public readonly string $scheme;
    public readonly string $host;
    public readonly ?int $port;
    public readonly string $path;
    public readonly string $query;

    public function __construct(string $uri)
    {
        $parts = parse_url($uri);
        if ($parts === false) {
            throw new InvalidArgumentException("Unable to parse URI: \"$uri\"");
        }
        $this->scheme = strtolower($parts['scheme'] ?? '');
        $this->host = strtolower($parts['host'] ?? '');
        $this->port = $parts['port'] ?? null;
        $this->path = $parts['path'] ?? '';
        $this->query = $parts['query'] ?? '';
    }

    public function getPath(): string
    {
        return $this->path;
    }
}

trait SmallMessage
{
    /** @var array<string, list<string>> */
    private array $headers = [];
    /** @var array<string, string> */
    private array $names = [];
    private string $body = '';

    public function withHeader(string $name, string|array $value): static
    {
        if (preg_match("/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/D", $name) !== 1) {
            throw new InvalidArgumentException('Header name must be an RFC 7230 compatible string');
        }
        $new = clone $this;
        $lower = strtolower($name);
        unset($new->headers[$new->names[$lower] ?? '']);
        $new->names[$lower] = $name;
        $new->headers[$name] = array_map(static fn ($text): string => trim((string) $text, " \t"), (array) $value);
        return $new;
    }

    /** @return array<string, list<string>> */
    public function getHeaders(): array
    {
        return $this->headers;
    }

    public function getHeaderLine(string $name): string
    {
        return implode(', ', $this->headers[$this->names[strtolower($name)] ?? ''] ?? []);
    }

    public function getBody(): string
    {
        return $this->body;
    }
}

final class SmallServerRequest
{
    use SmallMessage;

    private mixed $parsedBody = null;
    private array $cookies = [];
    private array $query = [];
    private array $uploads = [];
    private array $attributes = [];

    public function __construct(private string $method, private SmallUri $uri, private string $protocol, string $body)
    {
        $this->body = $body;
    }

    public function getMethod(): string
    {
        return $this->method;
    }

    public function getUri(): SmallUri
    {
        return $this->uri;
    }

    private function with(string $property, mixed $value): static
    {
        $new = clone $this;
        $new->$property = $value;
        return $new;
    }

    public function withCookieParams(array $cookies): static
    {
        return $this->with('cookies', $cookies);
    }

    public function withQueryParams(array $query): static
    {
        return $this->with('query', $query);
    }

    public function withUploadedFiles(array $uploads): static
    {
        return $this->with('uploads', $uploads);
    }

    public function withParsedBody(mixed $body): static
    {
        return $this->with('parsedBody', $body);
    }

    public function withAttribute(string $name, mixed $value): static
    {
        return $this->with('attributes', [$name => $value] + $this->attributes);
    }

    public function getQueryParams(): array
    {
        return $this->query;
    }

    public function getParsedBody(): mixed
    {
        return $this->parsedBody;
    }
}

final class SmallResponse
{
    use SmallMessage;

    public function __construct(private int $status, array $headers, string $body)
    {
        foreach ($headers as $name => $value) {
            $this->names[strtolower($name)] = $name;
            $this->headers[$name] = (array) $value;
        }
        $this->body = $body;
    }

    public function getStatusCode(): int
    {
        return $this->status;
    }
}

$hasNyholm = is_file('/usr/share/php/Nyholm/Psr7/autoload.php');
if ($hasNyholm) {
    require '/usr/share/php/Nyholm/Psr7/autoload.php';
}

function server_request(HttpRequest $told, bool $hasNyholm): object
{
    $protocol = substr($told->protocol, 5);
    if ($hasNyholm) {
        $request = new Nyholm\Psr7\ServerRequest($told->method, $told->uri, [], $told->body, $protocol);
    } else {
        $request = new SmallServerRequest($told->method, new SmallUri($told->uri), $protocol, $told->body);
    }
    parse_str($told->rawQuery, $query);
    $request = $request->withQueryParams($query)->withCookieParams($told->cookies);
    foreach ($told->headers as $name => $values) {
        $request = $request->withHeader((string) $name, $values);
    }
    foreach ($told->attributes as $name => $value) {
        $request = $request->withAttribute($name, $value);
    }
    $request = $request->withAttribute('rr_parsed_body', $told->parsed);
    if ($told->parsed) {
        $request = $request->withParsedBody(json_decode($told->body, true, 512, JSON_THROW_ON_ERROR));
    }
    return $request;
}

$worker ??= HttpWorker::create(); // php-fpm brings its own, with one request (tools/bench http)
while (($told = $worker->waitRequest()) !== null) {
    $request = server_request($told, $hasNyholm);
    $headers = ['Content-Type' => 'text/plain; charset=utf-8'];
    $body = $request->getMethod() . ' ' . $request->getUri()->getPath() . "\n";
    $response = $hasNyholm
        ? new Nyholm\Psr7\Response(200, $headers, $body)
        : new SmallResponse(200, $headers, $body);
    $response = $response->withHeader('X-Powered-By', $hasNyholm ? 'nyholm' : 'small');
    $worker->respond($response->getStatusCode(), (string) $response->getBody(), $response->getHeaders());
}
