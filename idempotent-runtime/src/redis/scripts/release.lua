-- KEYS 1 record. ARGV 1 token 2 '1' to keep the attempts.
local r = read()
local refused = refusal(r, ARGV[1])
if refused then return refused end
if r.state == RELEASED then return 'already' end
if not is_unfinished(r) then return 'lost' end
if ARGV[2] == '1' then
  r.state, r.reason, r.lease, r.checkpoints, r.taken = RELEASED, 0, u64(0), 0, 0
  replace(r, '', false, r.remaining)
else
  redis.call('DEL', key)
end
return 'applied'
