# mypy: disallow-untyped-defs=False
"""The sampler's kernels. A row is cut into chunks that are looked at side by side; one program then decides for the row.

A token's mass is an integer in units of 2^-40 of the best token's, so sums are exact and their order cannot matter: the
token drawn depends on the row alone, whatever the chunks. A threshold is a key: the logit's bits in an order that integers
have, so equal logits are kept or dropped together.
"""

import triton
import triton.language as tl

from ridgepoint.kernels.triton_call import after_previous

UNIT = tl.constexpr(2.0**40)
NEAR = tl.constexpr(2.0**-14)  # of the best probability: what is above is listed apart, and is nearly all of the mass
STEEPEST = tl.constexpr(1e30)  # of 1 / temperature: what is colder is greedy all the same
UNIFORM_BITS = tl.constexpr(52)
PARTS = tl.constexpr(4)  # of a chunk, in passes that keep more beside it in registers
LOWEST = tl.constexpr(-0x7F800001)  # the key of minus infinity
HIGHEST = tl.constexpr(0x7F800000)  # the key of infinity


@triton.jit
def _key(x):
    """int32 that orders as the float32 `x` does."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _logit(key):
    """The float32 with this key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _between(low, high):
    """Halfway, rounded up, without passing 32 bits."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def _weight(x, best, steep):
    """Relative to the best token's."""
    return tl.exp((x - best) * steep)


@triton.jit
def _mass(weight):
    return (weight * UNIT).to(tl.int64)


@triton.jit
def _steepness(temperature_ptr, r):
    temperature = tl.load(temperature_ptr + r)
    return tl.minimum(1.0 / tl.where(temperature > 0, temperature, 1.0), STEEPEST).to(tl.float32)


@triton.jit
def _load_chunk(logits_ptr, r, chunk, row_stride, V: tl.constexpr, CHUNK: tl.constexpr):
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    return tl.load(logits_ptr + r * row_stride + at, mask=at < V, other=float("-inf"))


@triton.jit
def scan_chunks(
    logits_ptr, best_ptr, place_ptr, row_stride, V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Program (chunk, r): the best logit of the chunk and its lowest place; NaN if there is one."""
    after_previous()
    chunk, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x = _load_chunk(logits_ptr, r, chunk, row_stride, V, CHUNK)
    best = tl.max(x, 0)
    place = tl.min(tl.where(x == best, tl.arange(0, CHUNK), CHUNK - 1), 0)
    is_nan = tl.sum((x != x).to(tl.int32), 0) > 0
    tl.store(best_ptr + r * CHUNKS + chunk, tl.where(is_nan, float("nan"), best))
    tl.store(place_ptr + r * CHUNKS + chunk, chunk * CHUNK + place)


@triton.jit
def weigh_chunks(
    logits_ptr, best_ptr, mass_ptr, kept_ptr, near_ptr, num_near_ptr, bound_ptr, num_heavy_ptr, lightest_ptr,
    temperature_ptr, min_p_ptr, row_stride,
    V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, CHUNKS_2: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Program (chunk, r): the chunk's mass, the part of it that min-p keeps, its logits near the best, and how many tokens have
    any mass with the lowest of their keys. If those near the best are too many for the list, only those from `bound` on are in
    it."""
    after_previous()
    chunk, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(temperature_ptr + r) == 0:
        return
    c = tl.arange(0, CHUNKS_2)
    best = tl.max(tl.load(best_ptr + r * CHUNKS + c, mask=c < CHUNKS, other=float("-inf")), 0)
    x = _load_chunk(logits_ptr, r, chunk, row_stride, V, CHUNK)
    weight = _weight(x, best, _steepness(temperature_ptr, r))
    mass = _mass(weight)
    at = r * CHUNKS + chunk
    tl.store(mass_ptr + at, tl.sum(mass, 0))
    tl.store(kept_ptr + at, tl.sum(tl.where(weight >= tl.load(min_p_ptr + r).to(tl.float32), mass, 0), 0))
    key = _key(x)
    heavy = mass > 0
    tl.store(num_heavy_ptr + at, tl.sum(heavy.to(tl.int32), 0))
    tl.store(lightest_ptr + at, tl.min(tl.where(heavy, key, HIGHEST), 0))
    near = weight >= NEAR
    bound = tl.full((), LOWEST, tl.int32)
    if tl.sum(near.to(tl.int32), 0) > ROOM:
        high = _key(best) + 1
        while bound < high:
            middle = (bound & high) + ((bound ^ high) >> 1)
            fits = tl.sum((key >= middle).to(tl.int32), 0) <= ROOM
            high = tl.where(fits, middle, high)
            bound = tl.where(fits, bound, middle + 1)
        near = key >= bound
    place = tl.cumsum(near.to(tl.int32), 0) - 1
    tl.store(near_ptr + at * ROOM + place, x, mask=near)
    tl.store(num_near_ptr + at, tl.sum(near.to(tl.int32), 0))
    tl.store(bound_ptr + at, bound)


@triton.jit
def _row_best(best_ptr, place_ptr, r, CHUNKS: tl.constexpr, CHUNKS_2: tl.constexpr):
    """The best logit of a row, its lowest token, and whether the row is numbers."""
    c = tl.arange(0, CHUNKS_2)
    best_C = tl.load(best_ptr + r * CHUNKS + c, mask=c < CHUNKS, other=float("-inf"))
    best = tl.max(best_C, 0)
    first = tl.min(tl.where(best_C == best, c, CHUNKS - 1), 0)
    is_nan = tl.sum((best_C != best_C).to(tl.int32), 0) > 0
    is_finite = (tl.abs(best) < float("inf")) & ~is_nan
    return best, tl.load(place_ptr + r * CHUNKS + first), is_finite


@triton.jit
def take_best(best_ptr, place_ptr, ids_ptr, CHUNKS: tl.constexpr, CHUNKS_2: tl.constexpr):
    after_previous()
    r = tl.program_id(0).to(tl.int64)
    _, token, is_finite = _row_best(best_ptr, place_ptr, r, CHUNKS, CHUNKS_2)
    tl.store(ids_ptr + r, tl.where(is_finite, token, -1).to(tl.int64))


@triton.jit
def _look(
    middle, low, high, logits_ptr, r, best, steep, row_stride,
    V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One pass over the row: number and mass of the tokens in [middle, high], the lowest key of theirs and the highest of those
    in [low, middle)."""
    count, mass = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    least, most = tl.full((), HIGHEST, tl.int32), tl.full((), LOWEST, tl.int32)
    PART: tl.constexpr = CHUNK // PARTS
    for part in range(0, CHUNKS * PARTS):
        x = _load_chunk(logits_ptr, r, part, row_stride, V, PART)
        key = _key(x)
        chosen = (key >= middle) & (key <= high)
        count += tl.sum(chosen.to(tl.int64), 0)
        mass += tl.sum(tl.where(chosen, _mass(_weight(x, best, steep)), 0), 0)
        least = tl.minimum(least, tl.min(tl.where(chosen, key, HIGHEST), 0))
        most = tl.maximum(most, tl.max(tl.where((key >= low) & (key < middle), key, LOWEST), 0))
    return count, mass, least, most


@triton.jit
def _cut(
    goal, BY_COUNT: tl.constexpr, low, inside, near_CN, is_listed, room_ptr, logits_ptr, r, best, steep, row_stride,
    V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, CHUNKS_2: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """The highest key at and above which there are `goal` tokens, or a mass of `goal`; and number and mass of what is above it.

    The `inside` tokens from `low` on have enough. Where they are not listed, passes over the row narrow them down until they fit
    the lists' room: by halving what lies between the lowest and the highest logit, which real rows need a few times, in turn
    with halving the keys between, of which no row has more than 32 halvings."""
    high = _key(best)
    count_above, mass_above = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    if is_listed == 0:
        by_key = tl.zeros((), tl.int32)
        while (inside > CHUNKS * ROOM) & (low < high):
            halved = _key((_logit(low) + _logit(high)) * 0.5)
            middle = tl.where((by_key > 0) | (halved <= low) | (halved > high), _between(low, high), halved)
            by_key = 1 - by_key
            count, mass, least, most = _look(
                middle, low, high, logits_ptr, r, best, steep, row_stride, V, CHUNK, CHUNKS
            )
            enough = (count_above + count if BY_COUNT else mass_above + mass) >= goal
            low = tl.where(enough, least, low)
            high = tl.where(enough, high, most)
            count_above += tl.where(enough, 0, count)
            mass_above += tl.where(enough, 0, mass)
            inside = tl.where(enough, count, inside - count)
        near_CN = tl.full((CHUNKS_2, ROOM), float("-inf"), tl.float32)
        if inside <= CHUNKS * ROOM:
            tl.debug_barrier()  # what lay in the room has been read by every thread
            start = tl.zeros((), tl.int32)
            PART: tl.constexpr = CHUNK // PARTS
            for part in range(0, CHUNKS * PARTS):
                x = _load_chunk(logits_ptr, r, part, row_stride, V, PART)
                chosen = (_key(x) >= low) & (_key(x) <= high)
                place = start + tl.cumsum(chosen.to(tl.int32), 0) - 1
                tl.store(room_ptr + place, x, mask=chosen & (place < CHUNKS * ROOM))
                start += tl.sum(chosen.to(tl.int32), 0)
            tl.debug_barrier()
            place_CN = tl.arange(0, CHUNKS_2)[:, None] * ROOM + tl.arange(0, ROOM)[None, :]
            near_CN = tl.load(room_ptr + place_CN, mask=place_CN < inside, other=float("-inf"))
    key_CN = _key(near_CN)
    while low < high:
        middle = _between(low, high)
        if BY_COUNT:
            reached = count_above + tl.sum((key_CN >= middle).to(tl.int64))
        else:
            reached = mass_above + tl.sum(tl.where(key_CN >= middle, _mass(_weight(near_CN, best, steep)), 0))
        enough = reached >= goal
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    count_above += tl.sum((key_CN > low).to(tl.int64))
    mass_above += tl.sum(tl.where(key_CN > low, _mass(_weight(near_CN, best, steep)), 0))
    return low, count_above, mass_above


@triton.jit
def draw(
    logits_ptr, best_ptr, place_ptr, mass_ptr, kept_ptr, near_ptr, num_near_ptr, bound_ptr, num_heavy_ptr, lightest_ptr,
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, uniform_ptr, ids_ptr, row_stride,
    V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, CHUNKS_2: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """Program r: the threshold that top-k and top-p set, then the first token whose cumulative mass passes the uniform
    number's share of what is kept."""
    after_previous()
    r = tl.program_id(0).to(tl.int64)
    best, token, is_finite = _row_best(best_ptr, place_ptr, r, CHUNKS, CHUNKS_2)
    token = tl.where(is_finite, token, -1)
    if is_finite & (tl.load(temperature_ptr + r) != 0):
        steep = _steepness(temperature_ptr, r)
        top_k, top_p = tl.load(top_k_ptr + r), tl.load(top_p_ptr + r)
        min_p = tl.load(min_p_ptr + r).to(tl.float32)
        is_limited = (top_k > 0) & (top_k < V)
        c = tl.arange(0, CHUNKS_2)
        in_row = c < CHUNKS
        kept_C = tl.load(kept_ptr + r * CHUNKS + c, mask=in_row, other=0)
        floor = tl.full((), LOWEST, tl.int32)
        if is_limited | (top_p < 1):
            whole = tl.sum(tl.load(mass_ptr + r * CHUNKS + c, mask=in_row, other=0), 0)
            num_C = tl.load(num_near_ptr + r * CHUNKS + c, mask=in_row, other=0)
            n = tl.arange(0, ROOM)
            near_CN = tl.load(
                near_ptr + (r * CHUNKS + c)[:, None] * ROOM + n[None, :], mask=n[None, :] < num_C[:, None],
                other=float("-inf"),
            )  # fmt: skip
            # The lists together hold every token of the row from the highest of their bounds on.
            bound = tl.max(tl.load(bound_ptr + r * CHUNKS + c, mask=in_row, other=LOWEST), 0)
            is_in_CN = (n[None, :] < num_C[:, None]) & (_key(near_CN) >= bound)
            near_CN = tl.where(is_in_CN, near_CN, float("-inf"))
            if is_limited:
                is_listed = tl.sum(is_in_CN.to(tl.int64)) >= top_k
            else:
                listed_mass = tl.sum(_mass(_weight(near_CN, best, steep)))
                is_listed = listed_mass.to(tl.float64) >= top_p * whole.to(tl.float64)
            is_listed = is_listed.to(tl.int32)
            in_list = tl.sum(is_in_CN.to(tl.int64))
            heavy = tl.sum(tl.load(num_heavy_ptr + r * CHUNKS + c, mask=in_row, other=0).to(tl.int64), 0)
            lightest = tl.min(tl.load(lightest_ptr + r * CHUNKS + c, mask=in_row, other=HIGHEST), 0)
            inside = tl.where(is_listed != 0, in_list, heavy)
            floor = tl.where(is_listed != 0, tl.min(tl.where(is_in_CN, _key(near_CN), _key(best))), lightest)
            room_ptr = near_ptr + r * CHUNKS * ROOM
            if is_limited & (inside >= top_k):  # else all that have any mass are among the k best
                floor, above, mass_above = _cut(
                    top_k, True, floor, inside, near_CN, is_listed, room_ptr, logits_ptr, r, best, steep, row_stride, V,
                    CHUNK, CHUNKS, CHUNKS_2, ROOM,
                )  # fmt: skip
                # Of equals at the threshold only as many count as make k.
                whole = mass_above + (top_k - above) * _mass(_weight(_logit(floor), best, steep))
                inside = tl.where(is_listed != 0, in_list, heavy)
            if top_p < 1:
                goal = tl.ceil(top_p * whole.to(tl.float64)).to(tl.int64)
                floor, above, mass_above = _cut(
                    goal, False, floor, inside, near_CN, is_listed, room_ptr, logits_ptr, r, best, steep, row_stride, V,
                    CHUNK, CHUNKS, CHUNKS_2, ROOM,
                )  # fmt: skip
            if is_listed != 0:
                weight_CN = _weight(near_CN, best, steep)
                kept_CN = (_key(near_CN) >= floor) & (weight_CN >= min_p)
                kept_C = tl.sum(tl.where(kept_CN, _mass(weight_CN), 0), 1)
            else:
                for chunk in range(0, CHUNKS):
                    x = _load_chunk(logits_ptr, r, chunk, row_stride, V, CHUNK)
                    weight = _weight(x, best, steep)
                    kept = (_key(x) >= floor) & (weight >= min_p)
                    kept_C = tl.where(c == chunk, tl.sum(tl.where(kept, _mass(weight), 0), 0), kept_C)
        share = (tl.load(uniform_ptr + r) * 2.0**UNIFORM_BITS).to(tl.uint64) << (64 - UNIFORM_BITS)
        goal = tl.umulhi(share, tl.sum(kept_C, 0).to(tl.uint64)).to(tl.int64)
        passed_C = tl.cumsum(kept_C, 0)
        chunk = tl.sum((passed_C <= goal).to(tl.int32), 0)
        goal -= tl.sum(tl.where(c < chunk, kept_C, 0), 0)
        x = _load_chunk(logits_ptr, r, chunk, row_stride, V, CHUNK)
        weight = _weight(x, best, steep)
        passed = tl.cumsum(tl.where((_key(x) >= floor) & (weight >= min_p), _mass(weight), 0), 0)
        token = chunk * CHUNK + tl.sum((passed <= goal).to(tl.int32), 0)
    tl.store(ids_ptr + r, token.to(tl.int64))


@triton.jit
def _mix(x):
    """splitmix64's finaliser."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def uniform_numbers(seeds_ptr, indices_ptr, uniform_ptr, num_rows, ROWS: tl.constexpr):
    """As `random.uniforms`, bit for bit; the seeds' 64 bits come as int64."""
    after_previous()
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = r < num_rows
    weyl = tl.full((ROWS,), 0x9E3779B97F4A7C15, tl.uint64)
    keys = _mix(tl.load(seeds_ptr + r, mask=live, other=0).to(tl.uint64, bitcast=True) + weyl)
    bits = _mix(keys + weyl * tl.load(indices_ptr + r, mask=live, other=0).to(tl.uint64, bitcast=True))
    bits = _mix(bits ^ (keys >> 32))
    tl.store(uniform_ptr + r, (bits >> (64 - UNIFORM_BITS)).to(tl.float64) * 2.0**-UNIFORM_BITS, mask=live)


@triton.jit
def edit_chunks(
    logits_ptr, out_ptr, counts_ptr, addends_ptr, seats_ptr, banned_ptr, repetition_ptr, presence_ptr, frequency_ptr,
    row_stride, V: tl.constexpr, CHUNK: tl.constexpr, IN_PROMPT: tl.constexpr, IS_STOP: tl.constexpr,
):  # fmt: skip
    """Program (chunk, r): the row with the rules of its seat; a negative seat has none. First penalties, then the addends, then
    the ban of stop tokens."""
    after_previous()
    chunk, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + r * row_stride + at, mask=at < V, other=0)
    seat = tl.load(seats_ptr + r).to(tl.int64)
    if seat >= 0:
        repetition = tl.load(repetition_ptr + r)
        presence, frequency = tl.load(presence_ptr + r), tl.load(frequency_ptr + r)
        counts = tl.load(counts_ptr + seat * V + at, mask=at < V, other=0)
        outputs = (counts & (IS_STOP - 1)).to(tl.float64)
        wide = x.to(tl.float64)
        wide = tl.where(wide > 0, wide / repetition, wide * repetition)
        wide = wide - tl.where(outputs > 0, presence, 0.0) - frequency * outputs
        x = tl.where((counts & (IN_PROMPT | (IS_STOP - 1))) != 0, wide.to(tl.float32), x)
        x += tl.load(addends_ptr + seat * V + at, mask=at < V, other=0)
        is_banned = (tl.load(banned_ptr + r) != 0) & ((counts & IS_STOP) != 0)
        x = tl.where(is_banned, float("-inf"), x)
    tl.store(out_ptr + r * V + at, x, mask=at < V)


@triton.jit
def count_tokens(counts_ptr, seats_ptr, ids_ptr, V: tl.constexpr):
    """Program r adds its row's chosen token to the counts of its seat. A seat belongs to one row of a step."""
    after_previous()
    r = tl.program_id(0)
    seat, token = tl.load(seats_ptr + r).to(tl.int64), tl.load(ids_ptr + r)
    if (seat >= 0) & (token >= 0):
        at = counts_ptr + seat * V + token
        tl.store(at, tl.load(at) + 1)


@triton.jit
def list_tops(
    logits_ptr, num_top_ptr, best_ptr, total_ptr, values_ptr, ids_ptr, row_stride,
    V: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Program (chunk, r): the chunk's best logit, its exponentials' sum beside that, and its `num_top` best, found one after the
    other; equals by id. A negative `num_top` wants nothing."""
    after_previous()
    chunk, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_top = tl.load(num_top_ptr + r)
    if num_top >= 0:
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = _load_chunk(logits_ptr, r, chunk, row_stride, V, CHUNK)
        best = tl.max(x, 0)
        shift = tl.where(best == float("-inf"), 0.0, best)
        place = r * CHUNKS + chunk
        tl.store(best_ptr + place, best)
        tl.store(total_ptr + place, tl.sum(tl.exp(x - shift), 0))
        last_x, last_id = tl.full((), float("inf"), tl.float32), -1
        for n in range(0, tl.minimum(num_top, MOST)):
            after = (at < V) & ((x < last_x) | ((x == last_x) & (at > last_id)))
            last_x = tl.max(tl.where(after, x, float("-inf")), 0)
            last_id = tl.min(tl.where(after & (x == last_x), at, V), 0)
            tl.store(values_ptr + place * MOST + n, last_x)
            tl.store(ids_ptr + place * MOST + n, last_id)


@triton.jit
def join_tops(
    logits_ptr, tokens_ptr, num_top_ptr, best_ptr, total_ptr, values_ptr, ids_ptr, chosen_ptr, top_ids_ptr, top_ptr, row_stride,
    V: tl.constexpr, CHUNKS: tl.constexpr, CHUNKS_2: tl.constexpr, MOST: tl.constexpr, MOST_2: tl.constexpr,
):  # fmt: skip
    """Program r: the log-probability of its token, and the best of the chunks' lists."""
    after_previous()
    r = tl.program_id(0).to(tl.int64)
    num_top = tl.load(num_top_ptr + r)
    if num_top >= 0:
        c = tl.arange(0, CHUNKS_2)
        best_C = tl.load(best_ptr + r * CHUNKS + c, mask=c < CHUNKS, other=float("-inf"))
        best = tl.max(best_C, 0)
        total_C = tl.load(total_ptr + r * CHUNKS + c, mask=c < CHUNKS, other=0).to(tl.float64)
        total = tl.sum(tl.where(best_C == float("-inf"), 0.0, total_C * tl.exp(best_C - best).to(tl.float64)), 0)
        norm = best.to(tl.float64) + tl.log(total)
        token = tl.maximum(tl.load(tokens_ptr + r), 0)
        tl.store(chosen_ptr + r, (tl.load(logits_ptr + r * row_stride + token).to(tl.float64) - norm).to(tl.float32))
        num_top = tl.minimum(num_top, MOST)
        n = tl.arange(0, MOST_2)
        listed_CN = (c < CHUNKS)[:, None] & (n < num_top)[None, :]
        at_CN = (r * CHUNKS + c)[:, None] * MOST + n[None, :]
        id_CN = tl.load(ids_ptr + at_CN, mask=listed_CN, other=V)
        x_CN = tl.load(values_ptr + at_CN, mask=listed_CN, other=float("-inf"))
        free_CN = id_CN < V  # a chunk may have fewer tokens than are wanted
        for i in range(0, num_top):
            next_x = tl.max(tl.where(free_CN, x_CN, float("-inf")))
            next_id = tl.min(tl.where(free_CN & (x_CN == next_x), id_CN, V))
            free_CN = free_CN & (id_CN != next_id)
            tl.store(top_ids_ptr + r * MOST + i, next_id.to(tl.int64))
            tl.store(top_ptr + r * MOST + i, (next_x.to(tl.float64) - norm).to(tl.float32))
