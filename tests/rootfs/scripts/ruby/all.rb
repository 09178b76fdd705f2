# Ruby: threads, files, sockets, OpenSSL, JSON, sets, big numbers, signals.
require "json"
require "openssl"
require "set"
require "socket"
require "tempfile"
require "timeout"

mutex, total = Mutex.new, 0
threads = 5.times.map { |i| Thread.new { 1000.times { mutex.synchronize { total += i } } ; Thread.current.object_id } }
puts threads.map(&:value).uniq.size, total
queue = Queue.new
consumer = Thread.new { 10.times.sum { queue.pop } }
10.times { |i| queue << i }
puts consumer.value
File.write("/tmp/ruby", "line\n" * 1000)
puts File.readlines("/tmp/ruby").size, File.stat("/tmp/ruby").size
begin
  File.read("/tmp/missing")
rescue Errno::ENOENT => e
  puts e.message
end
server = TCPServer.new("127.0.0.1", 0)
client = Thread.new { TCPSocket.open("127.0.0.1", server.addr[1]) { |s| s.puts "hello"; s.gets } }
accepted = server.accept
line = accepted.gets
accepted.puts line.upcase
puts client.value
puts JSON.generate({ a: [1, 2.5, nil], "b" => "é" }), JSON.parse('{"x": [1]}')
puts OpenSSL::Digest::SHA256.hexdigest("abc"), 2**100, Set[1, 2, 2].size
begin
  Timeout.timeout(0.02) { loop {} }
rescue Timeout::Error
  puts "timeout"
end
fiber = Fiber.new { 3.times { |i| Fiber.yield i }; :done }
puts 4.times.map { fiber.resume }.inspect
trap("USR1") { puts "signal" }
Process.kill("USR1", Process.pid)
sleep 0.01
puts [3, 1, 2].sort.inspect, "text"[1..2], format("%.10f", Math::PI)
GC.start
exit 8
