-- Code that all scripts share, after the codes of states, policies and reasons, VERSION, FIXED and
-- HEADER (script.rs). The places of the fields are those of store/envelope.rs, counted from one here. Time is the server's. The lease of a first claim is not written: it ends `linger`
-- and `after_expiry` before the key expires.
local key = KEYS[1]
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)

local BY_EXPIRY, GIVEN_UP = string.rep('\255', 8), string.rep('\0', 8)

local function u32(value) return struct.pack('>I4', value) end
local function u64(value) return struct.pack('>I8', value) end
local function number(text)
  local value = 0
  for i = 1, #text do value = value * 256 + string.byte(text, i) end
  return value
end

-- The first FIXED bytes of a record as fields.
local function parse(head)
  return {
    state = string.byte(head, 2), owner = string.sub(head, 3, 18), fence = number(string.sub(head, 19, 26)),
    linger = number(string.sub(head, 27, 34)), after = number(string.sub(head, 35, 42)),
    fingerprint = string.sub(head, 43, 60), policy = string.byte(head, 61), created = string.sub(head, 62, 69),
    attempts = number(string.sub(head, 70, 73)), reason = string.byte(head, 74), lease = string.sub(head, 75, 82),
    schema = string.sub(head, 91, 94), checkpoints = number(string.sub(head, 95, 98)), taken = string.byte(head, 99),
  }
end

local function fixed(r)
  return string.char(VERSION, r.state) .. r.owner .. u64(r.fence) .. u64(r.linger) .. u64(r.after) .. r.fingerprint
    .. string.char(r.policy) .. r.created .. u32(r.attempts) .. string.char(r.reason) .. r.lease .. u64(0) .. r.schema
    .. u32(r.checkpoints) .. string.char(r.taken)
end

-- The lengths of the texts, unchanged, and of a body.
local function lengths(r, body_length) return string.sub(r.head, 100, 108) .. u64(body_length) end

-- The length of the texts that belong to the key: operation and namespace. Holder and trace context,
-- which belong to the owner, and padding follow.
local function key_words(head) return number(string.sub(head, 100, 103)) + string.byte(head, 104) end

-- The texts, with their padding ("words"), are at the end.
local function words_of(r)
  if r.words == 0 then return '' end
  return redis.call('GETRANGE', key, -r.words, -1)
end

local function body_of(r)
  if r.body_length == 0 then return '' end
  return redis.call('GETRANGE', key, HEADER, HEADER + r.body_length - 1)
end

-- Returns the record, or nil. One that has expired becomes a tombstone here if it has an
-- `after_expiry`.
local function read()
  local head = redis.call('GETRANGE', key, 0, HEADER - 1)
  if #head == 0 then return nil end
  if #head < HEADER or string.byte(head, 1) ~= VERSION then error({ err = 'UNREADABLE the value is no record of this version' }) end
  local r = parse(head)
  r.head = head
  r.words = key_words(head) + string.byte(head, 105) + string.byte(head, 106) + number(string.sub(head, 107, 108))
  r.body_length = number(string.sub(head, 109, 116))
  r.remaining = redis.call('PTTL', key)
  r.left = r.remaining - r.after
  if r.left <= 0 and r.state ~= TOMBSTONE then
    if r.state == RELEASED then redis.call('DEL', key); return nil end
    r.state, r.reason, r.after, r.left, r.lease = TOMBSTONE, 0, 0, r.remaining, GIVEN_UP
    redis.call('SET', key, fixed(r) .. lengths(r, 0) .. words_of(r), 'KEEPTTL')
    r.body_length = 0
  end
  if r.lease == BY_EXPIRY then r.ends = now + r.left - r.linger else r.ends = number(r.lease) end
  return r
end

-- Writes the fields; words, body and expiry stay as they are.
local function write(r) redis.call('SETRANGE', key, 0, fixed(r)) end

-- Starts the lease now, and keeps the record for its linger beyond that. A later expiry stays.
local function renew(r, lease)
  local wanted = lease + r.linger + r.after
  if r.remaining > wanted then
    r.lease = u64(now + lease)
  else
    r.lease, r.remaining = BY_EXPIRY, wanted
    redis.call('PEXPIRE', key, wanted)
  end
end

-- Replaces the body. A staged one is under KEYS[2], after room for the fields, and does not pass
-- through the script.
local function replace(r, body, staged, expiry)
  local text = r.text or words_of(r)
  if staged then
    redis.call('RENAME', KEYS[2], key)
    local length = number(redis.call('GETRANGE', key, HEADER - 8, HEADER - 1))
    redis.call('SETRANGE', key, 0, fixed(r) .. lengths(r, length))
    redis.call('SETRANGE', key, HEADER + length, text)
    redis.call('PEXPIRE', key, expiry)
  else
    redis.call('SET', key, fixed(r) .. lengths(r, #body) .. body .. text, 'PX', expiry)
  end
end

local function is_unfinished(r) return r.state == IN_PROGRESS or r.state == IN_DOUBT end
local function is_answer(r) return r.state == COMPLETED or r.state == FAILED end
local function next_fence(r) return math.max(r.fence + 1, micros) end
-- Returns the refusal of an owner's write: 'gone', 'lost', or nil if the record is its own.
local function refusal(r, token)
  if not r or r.state == TOMBSTONE then return 'gone' end
  if r.owner ~= token then return 'lost' end
end
