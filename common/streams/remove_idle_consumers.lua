-- Remove idle consumers without pending entries from a group. Called by ConsumerGroup in group.py.
--
-- KEYS[1]  the stream
-- ARGV[1]  the group
-- ARGV[2]  the shortest idle time, in milliseconds
-- ARGV[3]  the only consumer to remove, or '' for all
-- Returns  the number of consumers removed
--
-- One script, because another consumer of the same name could read between a check and XGROUP DELCONSUMER, which destroys
-- pending entries.
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) and (ARGV[3] == '' or consumer.name == ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
