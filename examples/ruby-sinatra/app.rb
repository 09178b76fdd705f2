# A dice cup that remembers how often it was shaken.
require "json"
require "sinatra"

set :bind, "0.0.0.0"
set :port, 8080
set :server, :puma

rolls = Hash.new(0)
lock = Mutex.new

get "/" do
  content_type :json
  lock.synchronize { { framework: "sinatra", rolls: rolls.values.sum }.to_json }
end

post "/roll" do
  content_type :json
  pips = rand(1..6)
  lock.synchronize do
    rolls[pips] += 1
    { pips:, rolls: rolls.values.sum }.to_json
  end
end
