<?php

// The mini library of the example, so that the tests run what users are shown.

declare(strict_types=1);

require __DIR__ . '/../../examples/php/goridge.php';
