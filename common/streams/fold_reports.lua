-- Replace the old reports of consumers by their sum. Called by ConsumerStatistics.prune in statistics.py.
--
-- KEYS[1]  the hash of the reports
-- ARGV[1]  the time before which a report is old, in microseconds UTC
-- Returns  the number of reports replaced
--
-- One script, because several consumers do it at once. The sum has the empty name. Numbers are written as text: cjson would
-- round a time.
local names = { 'stored', 'duplicates', 'dead_letters', 'batches' }
local sum, latest, folded = {}, 0, 0
local function add(text)
  local valid, report = pcall(cjson.decode, text)
  if not valid or type(report) ~= 'table' or type(report.at) ~= 'number' then return true end
  if report.at >= tonumber(ARGV[1]) then return false end
  latest = math.max(latest, report.at)
  for _, name in ipairs(names) do sum[name] = (sum[name] or 0) + (tonumber(report[name]) or 0) end
  return true
end
local found = redis.call('HGETALL', KEYS[1])
for i = 1, #found, 2 do
  if found[i] ~= '' and add(found[i + 1]) then
    redis.call('HDEL', KEYS[1], found[i])
    folded = folded + 1
  end
end
if folded == 0 then return 0 end
local before = redis.call('HGET', KEYS[1], '')
if before then add(before) end
local parts = {}
for _, name in ipairs(names) do table.insert(parts, string.format('"%s": %.0f', name, sum[name] or 0)) end
table.insert(parts, string.format('"at": %.0f', latest))
redis.call('HSET', KEYS[1], '', '{' .. table.concat(parts, ', ') .. '}')
return folded
