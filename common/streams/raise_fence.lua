-- Raise the fence of another stream of the feed to an epoch; never lower it. Called by Lease.acquire in lease.py.
--
-- KEYS[1]  the fence: a hash from the name of a feed to the epoch of its active producer
-- ARGV[1]  the name of the feed
-- ARGV[2]  the epoch
-- Returns  the epoch of the active producer
local epoch = redis.call('HGET', KEYS[1], ARGV[1])
if epoch and tonumber(epoch) >= tonumber(ARGV[2]) then return epoch end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return ARGV[2]
