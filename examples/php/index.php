<?php
// A guest book in a file of the VM.
const BOOK = '/tmp/guestbook.txt';
const MAX_BOOK_BYTES = 1 << 20;

header('Content-Type: application/json');
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $line = str_replace(["\r", "\n"], ' ', file_get_contents('php://input', length: 1000));
    if (is_file(BOOK) && filesize(BOOK) > MAX_BOOK_BYTES) {
        http_response_code(507);
        exit(json_encode(['error' => 'the book is full']));
    }
    file_put_contents(BOOK, $line . "\n", FILE_APPEND | LOCK_EX);
    http_response_code(201);
}
$lines = is_file(BOOK) ? file(BOOK, FILE_IGNORE_NEW_LINES) : [];
echo json_encode(['php' => PHP_VERSION, 'entries' => count($lines), 'last' => end($lines) ?: null]), "\n";
