-- Append entries to a stream, all or none. Called by Stream.append in stream.py.
--
-- KEYS[1]  the stream
-- ARGV     for each entry: the number of its names and values, then these names and values in turn
-- Returns  nothing
--
-- One script instead of XADD commands in a transaction: packing one command and reading one reply halves the client's work.
local position = 1
while position < #ARGV do
  local last = position + tonumber(ARGV[position])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, position + 1, last))
  position = last + 1
end
