-- KEYS 1 record 2 staged record. ARGV 1 observed token 2 new token 3 state, or 0 for not executed
-- 4 schema 5 ttl 6 '1' if staged 7 body.
local staged, state = ARGV[6] == '1', tonumber(ARGV[3])
local r = read()
local refused
if not r or r.state == TOMBSTONE then
  refused = 'absent'
elseif r.state == IN_PROGRESS and r.ends > now then
  refused = 'running'
-- An operator may correct an operator's answer, but not to "it did not happen": callers may have
-- received it.
elseif (r.state ~= IN_DOUBT and not (is_answer(r) and r.reason == RESOLVED and state ~= 0)) or r.owner ~= ARGV[1] then
  refused = (r.owner == ARGV[2] and r.reason == RESOLVED) and 'applied' or 'conflict'
end
if refused then
  if staged then redis.call('UNLINK', KEYS[2]) end
  return refused
end
if state == 0 then
  redis.call('DEL', key)
  return 'applied'
end
if staged and redis.call('EXISTS', KEYS[2]) == 0 then return 'unstaged' end
r.state, r.owner, r.fence, r.reason, r.schema = state, ARGV[2], next_fence(r), RESOLVED, ARGV[4]
replace(r, ARGV[7], staged, tonumber(ARGV[5]) + r.after)
return 'applied'
