-- KEYS 1 record. ARGV 1 token 2 '1' to keep the attempts 3 '1' if nothing began under the claim.
local r = read()
local refused = refusal(r, ARGV[1])
if refused then return refused end
if r.state == RELEASED then return 'already' end
if not is_unfinished(r) then return 'lost' end
local unused = ARGV[3] == '1'
-- Only once: a repeated release finds the lease given up.
if unused and r.lease ~= GIVEN_UP then r.attempts = math.max(r.attempts - 1, 0) end
if r.taken ~= 0 then
  r.lease = GIVEN_UP
  if r.reason == 0 then r.reason = CRASHED end
  write(r)
elseif ARGV[2] == '1' or (unused and r.attempts > 0) then
  r.state, r.reason, r.lease, r.checkpoints, r.taken = RELEASED, 0, GIVEN_UP, 0, 0
  replace(r, '', false, r.remaining)
else
  redis.call('DEL', key)
end
return 'applied'
