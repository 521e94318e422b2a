-- Delete old entries that every group on a stream has read and acknowledged. Called by Stream.trim in stream.py.
--
-- KEYS[1]  the stream
-- ARGV[1]  milliseconds that such entries stay after they were appended
-- ARGV[2]  bytes of the stream above which they stay for a shorter time, or 0
-- Returns  the number of entries deleted
--
-- One script, because a consumer could read an entry between the look at the oldest pending entry and the look at the last
-- delivered one.

-- Compare ids as numbers. They have no leading zeros, so the shorter number is smaller. A Lua number would lose digits.
local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if a1 == b1 then a1, b1 = a2, b2 end
  if #a1 ~= #b1 then return #a1 < #b1 end
  return a1 < b1
end

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local keep = nil
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  local oldest = redis.call('XPENDING', KEYS[1], group.name)[2]
  local needed = group['last-delivered-id']
  if oldest and before(oldest, needed) then needed = oldest end
  if not keep or before(needed, keep) then keep = needed end
end
if not keep then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local from = now - ARGV[1]
local limit = tonumber(ARGV[2])
if limit > 0 then
  local used = redis.call('MEMORY', 'USAGE', KEYS[1])
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if used > limit and oldest then
    local first = tonumber(string.match(oldest[1], '%d+'))
    -- The share of the time that is above the limit. Entries may come at any rate: the next run corrects the rest.
    from = math.max(from, math.ceil(now - (now - first) * limit / used))
  end
end
local wanted = string.format('%.0f-0', math.max(from, 0))
if before(wanted, keep) then keep = wanted end
return redis.call('XTRIM', KEYS[1], 'MINID', keep)
