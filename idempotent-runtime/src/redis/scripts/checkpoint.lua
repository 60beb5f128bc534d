-- KEYS 1 record 2 staged record. ARGV 1 token 2 sequence 3 '1' if staged 4 body 5 '1' if
-- nothing had begun under the claims before.
local staged, body, sequence = ARGV[3] == '1', ARGV[4], tonumber(ARGV[2])
local r = read()
local refused = refusal(r, ARGV[1])
if not refused and r.state ~= IN_PROGRESS then refused = 'lost' end
if staged and not refused and redis.call('EXISTS', KEYS[2]) == 0 then return 'unstaged' end
if not refused and sequence == r.checkpoints then
  if ARGV[5] == '1' then r.taken = 0 end
  r.checkpoints = r.checkpoints + 1
  replace(r, body, staged, r.remaining)
  return 'applied'
end
if not refused then
  -- Only a repeated checkpoint gets here, so that reading the bodies is rare.
  if staged then body = redis.call('GETRANGE', KEYS[2], HEADER, -1) end
  refused = (sequence + 1 == r.checkpoints and body_of(r) == body) and 'already' or 'lost'
end
if staged then redis.call('UNLINK', KEYS[2]) end
return refused
