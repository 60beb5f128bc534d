-- KEYS 1 record. ARGV 1 the record to write: fields and words, no body; 2 its lease.
local mine, lease = ARGV[1], tonumber(ARGV[2])
local m = parse(mine)
local r = read()

local function shown(verdict)
  return { verdict, redis.call('GETRANGE', key, 0, HEADER - 1), words_of(r), redis.call('PTTL', key), now }
end

if not r or r.state == RELEASED then
  m.lease = BY_EXPIRY
  if r then m.created, m.attempts, m.fence = r.created, r.attempts + 1, next_fence(r) end
  local total = lease + m.linger + m.after
  if r and r.remaining > total then m.lease, total = u64(now + lease), r.remaining end
  local record = fixed(m) .. string.sub(mine, FIXED + 1)
  redis.call('SET', key, record, 'PX', total)
  return { 'mine', string.sub(record, 1, HEADER), string.sub(record, HEADER + 1), total, now }
end
if r.state == IN_PROGRESS and r.owner == m.owner then return shown('mine') end

local policy = math.max(r.policy, m.policy)
local contradicts = r.fingerprint ~= m.fingerprint
local over = r.ends <= now
-- A caller without a verification callback cannot take over a record that requires one.
local can_ask = policy ~= VERIFY or m.policy == VERIFY
if over and not contradicts and can_ask
  and ((r.state == IN_PROGRESS and policy < HOLD)
    -- A re-sent claim of the owner that left it in doubt must not win: no caller waits for its
    -- answer.
    or (r.state == IN_DOUBT and policy == VERIFY and r.owner ~= m.owner)) then
  m.fence, m.attempts, m.created, m.policy = next_fence(r), r.attempts + 1, r.created, policy
  m.checkpoints, m.taken, m.remaining = r.checkpoints, r.state, r.remaining
  -- The words of the owner change with it, in place: a checkpoint may be too large to be moved by a
  -- script.
  local kept, words = key_words(r.head), string.sub(mine, HEADER + key_words(mine) + 1)
  local padding = math.max(r.words - kept - #words, 0)
  redis.call('SETRANGE', key, HEADER + r.body_length + kept, words .. string.rep('\0', padding))
  redis.call('SETRANGE', key, 104, string.sub(mine, 105, 106) .. struct.pack('>I2', padding))
  r.words = kept + #words + padding
  renew(m, lease)
  write(m)
  return shown('mine')
end
-- Another request does not decide that this one may not run again.
if contradicts then policy = r.policy end
if r.state == IN_PROGRESS and over and policy == HOLD then
  r.state, r.lease = IN_DOUBT, u64(math.max(r.ends, 0))
  if r.reason == 0 then r.reason = CRASHED end
  write(r)
end
return shown('held')
