<?php
// PHP: arrays, files, streams, JSON, hashing, generators, sockets.
file_put_contents('/tmp/php', str_repeat("line\n", 1000));
echo count(file('/tmp/php')), ' ', filesize('/tmp/php'), "\n";
echo @file_get_contents('/tmp/missing') === false ? "missing\n" : "?\n";
echo json_encode(['a' => [1, 2.5, null, 'é'], 'b' => true], JSON_UNESCAPED_UNICODE), "\n";
echo hash('sha256', 'abc'), ' ', md5('abc'), ' ', crc32('abc'), "\n";
function squares(int $n): Generator { for ($i = 1; $i <= $n; $i++) yield $i => $i ** 2; }
echo array_sum(iterator_to_array(squares(1000))), "\n";
$data = range(1, 5000);
usort($data, fn (int $a, int $b): int => ($b * 7919 % 5003) <=> ($a * 7919 % 5003));
echo implode(',', array_slice($data, 0, 5)), "\n";
echo password_verify('x', password_hash('x', PASSWORD_BCRYPT, ['cost' => 4])) ? 'verified' : 'no', "\n";
preg_match_all('/\b(\w)\w*\b/u', 'the quick brown fox', $found);
echo implode('', $found[1]), ' ', preg_replace('/o/', '0', 'foo'), "\n";
$server = stream_socket_server('tcp://127.0.0.1:0', $code, $message);
$client = stream_socket_client('tcp://' . stream_socket_get_name($server, false));
$accepted = stream_socket_accept($server);
fwrite($client, "hello\n");
echo 'got ', fgets($accepted);
try { intdiv(1, 0); } catch (DivisionByZeroError $error) { echo $error->getMessage(), "\n"; }
echo strlen(random_bytes(16)), ' ', random_int(5, 5), ' ', PHP_INT_MAX, ' ', PHP_OS, "\n";
echo gmdate('Y-m-d', 0), ' ', round(M_PI, 8), "\n";
usleep(10000);
echo memory_get_usage() > 100000 ? "memory\n" : "?\n";
exit(9);
