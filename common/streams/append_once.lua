-- Append numbered entries of one session to a stream, each once. Called by Stream.append_once in stream.py.
--
-- KEYS[1]  the stream
-- KEYS[2]  the mark: the highest number of this session that was appended
-- KEYS[3]  the fence: a hash from the name of a feed to the epoch of its active producer, in microseconds UTC
-- ARGV[1]  the name of the feed
-- ARGV[2]  the epoch of this producer, or '' to append without a check
-- ARGV[3]  the number before the first entry if it must have been appended, or 0
-- ARGV[4]  seconds that the mark is kept
-- ARGV[5…] for each entry: its number, the number of its names and values, then these names and values in turn
-- Returns  the number of entries appended, without those up to the mark
-- Errors   FENCED <epoch>: another producer of this feed is active since then
--          BEHIND <mark>: this node lacks earlier entries, for example after a failover
--
-- A batch may be sent again at any time. The mark is written each time, since WAIT confirms only what this connection wrote.
if ARGV[2] ~= '' then
  local epoch = redis.call('HGET', KEYS[3], ARGV[1])
  if epoch and tonumber(epoch) > tonumber(ARGV[2]) then return redis.error_reply('FENCED ' .. epoch) end
end
local mark = tonumber(redis.call('GET', KEYS[2]) or '0')
if mark < tonumber(ARGV[3]) then return redis.error_reply('BEHIND ' .. mark) end
local appended, position = 0, 5
while position < #ARGV do
  local number, last = tonumber(ARGV[position]), position + 1 + tonumber(ARGV[position + 1])
  if number > mark then
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, position + 2, last))
    mark, appended = number, appended + 1
  end
  position = last + 1
end
redis.call('SET', KEYS[2], string.format('%.0f', mark), 'EX', ARGV[4])
return appended
