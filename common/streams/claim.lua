-- Make the holder of the lease the active producer of its feed. Called by Lease.acquire in lease.py.
--
-- KEYS[1]  the lease
-- KEYS[2]  the fence: a hash from the name of a feed to the epoch of its active producer, in microseconds UTC
-- ARGV[1]  the holder
-- ARGV[2]  the name of the feed
-- ARGV[3]  the field of the fence for the newest epochs of the feed, at most 100
-- Returns  the new epoch, which is greater than every earlier one, or '0' if another process has the lease
--
-- One script, because the holder could be paused between a check and the change, until another one is active.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return '0' end
local time = redis.call('TIME')
local earlier = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '0')
local epoch = string.format('%.0f', math.max(earlier + 1, time[1] * 1000000 + time[2]))
local epochs = redis.call('HGET', KEYS[2], ARGV[3])
epochs = epochs and string.sub(epochs .. ' ' .. epoch, -1699) or epoch -- of 16 digits each
redis.call('HSET', KEYS[2], ARGV[2], epoch, ARGV[3], epochs)
return epoch
