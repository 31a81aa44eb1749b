// CUDA on a CPU: every thread is a fiber; what the memory model leaves open is varied by a seed, what it forbids is
// reported. Compiled without instrumentation; kernels are compiled with -fsanitize=thread, whose hooks end up here.
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <string>
#include <sys/mman.h>
#include <vector>

#include "emulator.h"

// what the launchers' guard asks: there is one device
extern "C" cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
extern "C" cudaError_t cudaSetDevice(int) { return cudaSuccess; }

namespace emu {
namespace {
constexpr size_t kStack = 128 << 10, kShared = 256 << 10, kGuard = 1 << 10;
constexpr uint16_t kNobody = 0xFFFF, kSeveral = 0xFFFE;

struct Copy {
  uint32_t to;
  const char* from;
  int bytes, given;
};
struct Fiber {
  void* sp;
  char* stack;
  Where at;
  int cta, warp, lane, thread;
  bool done;
  const long* gate;  // what it waits for, and the value that means waiting
  long closed;
  bool arrived;  // at the barrier of its cluster, for which it has not waited
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
  std::vector<long> seen;  // per CTA: phases of it that happened before, as far as this thread knows
};
struct Warp {
  uint32_t in[2][32][20], out[2][32][8];
  int arrived = 0, size = 0, live = 0;
  long turn = 0, phase = 0;
  int what = 0;
};
// The last accesses of a byte. Two threads of a CTA are ordered by a __syncthreads between, of a warp by a __syncwarp.
struct Access {
  uint16_t writer = kNobody, reader = kNobody;  // threads of the CTA; kSeveral: several readers
  uint16_t reader_warp = 0;                     // kSeveral: of several warps
  uint16_t writer_cta = 0, reader_cta = 0;
  uint32_t write_phase = 0, write_step = 0, read_phase = 0, read_step = 0;
};
struct Cta {
  bool live = false;
  int index = 0, running = 0, arrived = 0;
  long phase = 0;
  char* shared = nullptr;
  size_t dynamic = 0, used = 0;
  std::map<int, size_t> statics;
  std::vector<Warp> warps;
  std::vector<Access> shadow;
  std::vector<Fiber*> fibers;
};
// CTAs that are resident together, and the barrier of all their threads.
struct Cluster {
  int running = 0, arrived = 0;
  long phase = 0;
};
struct Range {
  char *begin, *end;
  std::vector<Access> shadow;
};

Fiber* current;
void* scheduler_sp;
std::vector<Cta> ctas;      // resident ones
std::vector<Cluster> clusters;  // of the residents, one after the other
int cluster_size;
std::vector<Fiber> fibers;  // of all residents
char* stacks;
size_t stacks_bytes;
std::vector<Range> ranges;
std::map<const void*, std::vector<long>> released;
std::function<void()> body;
std::string problem;
sigjmp_buf escape;
uint64_t random_state = 1;
bool early, jump_ready;
int limit = 1 << 30;
Where nowhere;

uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

[[noreturn]] void fail(const char* format, ...) {
  char text[600];
  int n = 0;
  if (current)
    n = snprintf(text, sizeof text, "block (%u, %u, %u) thread %d: ", current->at.block.x, current->at.block.y,
                 current->at.block.z, current->thread);
  va_list more;
  va_start(more, format);
  vsnprintf(text + n, sizeof text - n, format, more);
  va_end(more);
  problem = text;
  siglongjmp(escape, 1);
}

extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

void pause() { emu_switch(&current->sp, scheduler_sp); }

void wait_at(const long* gate, long closed) {
  current->gate = gate;
  current->closed = closed;
  pause();
}

Cta& cta() { return ctas[current->cta]; }
Warp& warp() { return cta().warps[current->warp]; }

void open_cta(Cta& c) {
  c.arrived = 0;
  c.phase++;
  std::vector<long> all = c.fibers[0]->seen;
  for (Fiber* f : c.fibers)
    for (size_t i = 0; i < all.size(); i++) all[i] = std::max(all[i], f->seen[i]);
  for (Fiber* f : c.fibers) f->seen = all;
}

Cluster& cluster() { return clusters[current->cta / cluster_size]; }

// A barrier of each of its CTAs, too: all that their threads have done so far is known to all.
void open_cluster(Cluster& c) {
  c.arrived = 0;
  c.phase++;
  Cta* first = &ctas[(&c - clusters.data()) * cluster_size];
  std::vector<long> all;
  for (Cta* one = first; one < first + cluster_size; one++) {
    one->phase++;
    for (Fiber* f : one->fibers) {
      all.resize(f->seen.size());
      for (size_t i = 0; i < all.size(); i++) all[i] = std::max(all[i], f->seen[i]);
    }
  }
  for (Cta* one = first; one < first + cluster_size; one++) all[one->index] = one->phase;
  for (Cta* one = first; one < first + cluster_size; one++)
    for (Fiber* f : one->fibers) f->seen = all;
}

void entry() {
  body();
  Fiber* f = current;
  Cta& c = cta();
  Warp& w = warp();
  for (auto& g : f->groups)
    for (Copy& k : g)
      if (k.given > 0) fail("ends while copies are under way");
  f->done = true;
  if (w.arrived) fail("ends while others of its warp wait for it");
  w.live--;
  if (f->arrived) fail("ends without a wait for the barrier of its cluster");
  if (--c.running && c.arrived == c.running) open_cta(c);
  Cluster& all = cluster();
  if (--all.running && all.arrived == all.running) open_cluster(all);
  pause();
}

void start(Fiber& f) {
  uintptr_t top = ((uintptr_t)f.stack + kStack) & ~(uintptr_t)15;
  void** sp = (void**)top;
  *--sp = nullptr;
  *--sp = (void*)entry;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  f.sp = sp;
}

// --- who has seen what

bool ordered(uint16_t thread, uint16_t by_warp, uint16_t by_cta, uint32_t phase, uint32_t step) {
  if (by_cta != (uint16_t)cta().index) return current->seen[by_cta] > (long)phase;
  if (thread == current->thread) return true;
  return cta().phase > (long)phase || (by_warp == current->warp && warp().phase > (long)step);
}

void look(Access& a, bool write, const char* where, size_t offset) {
  uint16_t me = current->thread, mine = cta().index;
  if (a.writer != kNobody && !ordered(a.writer, a.writer / 32, a.writer_cta, a.write_phase, a.write_step))
    fail("%s byte %zu %s what thread %d (block %d) wrote, with nothing between them that orders the two", where,
         offset, write ? "overwrites" : "reads", a.writer, a.writer_cta);
  if (write) {
    if (a.reader != kNobody && !ordered(a.reader, a.reader_warp, a.reader_cta, a.read_phase, a.read_step))
      fail("%s byte %zu overwrites what thread %d (block %d) reads, with nothing between them that orders the two",
           where, offset, a.reader, a.reader_cta);
    a.writer = me;
    a.writer_cta = mine;
    a.write_phase = cta().phase;
    a.write_step = warp().phase;
    a.reader = kNobody;
    return;
  }
  bool fresh = a.reader == kNobody || a.reader_cta != mine || a.read_phase != (uint32_t)cta().phase;
  if (fresh || a.reader == me) {
    a.reader = me;
    a.reader_warp = current->warp;
  } else {
    a.reader = kSeveral;
    if (a.reader_warp != current->warp) a.reader_warp = kSeveral;
  }
  a.reader_cta = mine;
  a.read_phase = cta().phase;
  a.read_step = warp().phase;
}

void touch(const void* p, size_t bytes, bool write) {
  const char* at = (const char*)p;
  if (!current || (size_t)(at - stacks) < stacks_bytes) return;
  if (current->arrived) fail("works between its arrival at the barrier of its cluster and its wait");
  Cta& c = cta();
  if (at >= c.shared && at < c.shared + kShared) {
    size_t offset = at - c.shared;
    if (offset + bytes > c.shadow.size()) fail("%s shared memory that nobody asked for", write ? "writes" : "reads");
    for (size_t i = 0; i < bytes; i++) look(c.shadow[offset + i], write, "shared", offset + i);
    return;
  }
  for (Range& r : ranges)
    if (at >= r.begin && at < r.end) {
      for (size_t i = 0; i < bytes; i++) look(r.shadow[at - r.begin + i], write, "global", at - r.begin + i);
      return;
    }
}

// --- collectives: the last lane of the warp to arrive computes for all

template <class F>
void together(int what, const void* in, size_t bytes, void* out, size_t out_bytes, F all) {
  Warp& w = warp();
  int side = w.turn & 1;
  if (w.arrived && w.what != what) fail("lanes of a warp are at different instructions");
  w.what = what;
  memcpy(w.in[side][current->lane], in, bytes);
  long turn = w.turn;
  if (++w.arrived == w.size) {
    w.arrived = 0;
    all(w.in[side], w.out[side]);
    w.turn++;
    if (draw() & 1) pause();
  } else {
    wait_at(&w.turn, turn);
  }
  memcpy(out, w.out[side][current->lane], out_bytes);
}

float half_of(uint32_t word, int odd, bool bf16) {
  uint16_t h = odd ? word >> 16 : word & 0xFFFF;
  if (bf16) return bits_float((uint32_t)h << 16);
  __half_raw raw;
  raw.x = h;
  return __half2float(__half(raw));
}

void land(Copy& c) {
  char* to = cta().shared + c.to;
  if (c.given > 0) memcpy(to, c.from, c.given);
  memset(to + c.given, 0, c.bytes - c.given);
}

void on_fault(int, siginfo_t* info, void*) {
  if (!jump_ready) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  fail("reads or writes outside its arguments, at %p", info->si_addr);
}
}  // namespace

Where* here = &nowhere;
const char* failure() { return problem.c_str(); }
char* dynamic_shared() { return cta().shared + kGuard; }
int lane() { return current->lane; }
void yield() {
  if (current) pause();
}

char* static_shared(int id, size_t bytes, size_t align) {
  Cta& c = cta();
  auto found = c.statics.find(id);
  if (found == c.statics.end()) {
    size_t at = (c.used + align - 1) / align * align;
    c.used = (at + bytes + kGuard + 127) / 128 * 128;
    if (c.used > kShared) fail("has too much shared memory");
    c.shadow.resize(c.used);
    found = c.statics.emplace(id, at).first;
  }
  return c.shared + found->second;
}

uint32_t shared_address(const void* p) {
  const char* at = (const char*)p;
  if (at < cta().shared || at > cta().shared + kShared) fail("takes an address outside shared memory for one of it");
  return at - cta().shared;
}

char* shared_pointer(uint32_t address) {
  if (address >= kShared) fail("has a shared address of %u", address);
  return cta().shared + address;
}

void copy_quietly(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }

void sync_cta() {
  Cta& c = cta();
  warp().phase++;
  long phase = c.phase;
  if (++c.arrived == c.running)
    open_cta(c);
  else
    wait_at(&c.phase, phase);
}

unsigned rank() { return current->at.block.x % cluster_size; }

// The two halves of one barrier; what lies between them is not emulated.
void arrive_cluster() {
  if (current->arrived) fail("arrives twice at the barrier of its cluster");
  current->arrived = true;
}

void wait_cluster() {
  if (!current->arrived) fail("waits for the barrier of its cluster, where it has not arrived");
  current->arrived = false;
  Cluster& c = cluster();
  long phase = c.phase;
  if (++c.arrived == c.running)
    open_cluster(c);
  else
    wait_at(&c.phase, phase);
}

void sync_warp(unsigned mask) {
  if (mask != ~0u) fail("syncs a part of its warp, which is not emulated");
  int nothing = 0;
  together(1, &nothing, 4, &nothing, 4, [](auto&, auto&) { warp().phase++; });
}

void shuffle(void* value, size_t bytes, int from) {
  uint32_t in[20] = {};
  memcpy(in, value, bytes);
  in[19] = from;
  together(2, in, sizeof in, value, bytes, [&](auto& in, auto& out) {
    for (int l = 0; l < 32; l++) memcpy(out[l], in[in[l][19] & 31], bytes);
  });
}

unsigned vote(int predicate, unsigned mask) {
  if (mask != ~0u) fail("votes in a part of its warp, which is not emulated");
  unsigned all;
  together(3, &predicate, 4, &all, 4, [](auto& in, auto& out) {
    unsigned bits = 0;
    for (int l = 0; l < 32; l++) bits |= (unsigned)(in[l][0] != 0) << l;
    for (int l = 0; l < 32; l++) out[l][0] = bits;
  });
  return all;
}

// The copy may read and write at any time from here until its group was waited for: both ends are tried, by the seed.
void copy_async(uint32_t to, const void* from, int bytes, int given) {
  if (given < 0 || given > bytes) fail("copies %d of %d bytes", given, bytes);
  if (to % bytes || (given && (uintptr_t)from % bytes)) fail("copies %d bytes to or from an address of less alignment", bytes);
  shared_pointer(to + bytes - 1);
  current->open.push_back({to, (const char*)from, bytes, given});
  touch(cta().shared + to, bytes, true);
  if (given) touch(from, given, false);
  if (early)
    land(current->open.back());
  else
    memset(cta().shared + to, 0xFF, bytes);
}

void commit_copies() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void wait_copies(int pending) {
  auto& groups = current->groups;
  while ((int)groups.size() > pending) {
    for (Copy& c : groups.front()) {
      touch(cta().shared + c.to, c.bytes, true);
      if (!early) land(c);
    }
    groups.pop_front();
  }
}

void load_matrix(uint32_t* r, int count, bool transposed, uint32_t row) {
  if (current->lane < 8 * count) {
    if (row % 16) fail("ldmatrix of an address of less than 16 bytes alignment");
    touch(shared_pointer(row), 16, false);
  }
  // other lanes' rows reach this one: it sees what was ordered before the lane that gave the address
  together(4 + transposed, &row, 4, r, 4 * count, [&](auto& in, auto& out) {
    for (int l = 0; l < 32; l++)
      for (int m = 0; m < count; m++) {
        uint16_t h[2];
        for (int e = 0; e < 2; e++) {
          int i = transposed ? l % 4 * 2 + e : l / 4, j = transposed ? l / 4 : l % 4 * 2 + e;
          memcpy(&h[e], cta().shared + in[m * 8 + i][0] + j * 2, 2);
        }
        out[l][m] = h[0] | (uint32_t)h[1] << 16;
      }
  });
}

uint32_t transpose_matrix(uint32_t a) {
  uint32_t d;
  together(6, &a, 4, &d, 4, [](auto& in, auto& out) {
    for (int l = 0; l < 32; l++) {
      uint16_t h[2];
      for (int e = 0; e < 2; e++) {
        uint32_t v = in[(l % 4 * 2 + e) * 4 + l / 8][0];
        h[e] = l / 4 & 1 ? v >> 16 : v & 0xFFFF;
      }
      out[l][0] = h[0] | (uint32_t)h[1] << 16;
    }
  });
  return d;
}

void multiply(float* d, const uint32_t* a, const uint32_t* b, const float* c, bool bf16) {
  uint32_t in[10];
  memcpy(in, a, 16);
  memcpy(in + 4, b, 8);
  memcpy(in + 6, c, 16);
  together(7, in, sizeof in, d, 16, [&](auto& in, auto& out) {
    float x[16][16], y[16][8];
    for (int l = 0; l < 32; l++)
      for (int e = 0; e < 2; e++) {
        for (int i = 0; i < 4; i++) x[l / 4 + i % 2 * 8][l % 4 * 2 + e + i / 2 * 8] = half_of(in[l][i], e, bf16);
        for (int i = 0; i < 2; i++) y[l % 4 * 2 + e + i * 8][l / 4] = half_of(in[l][4 + i], e, bf16);
      }
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        int m = l / 4 + i / 2 * 8, n = l % 4 * 2 + i % 2;
        float s = 0, r;
        for (int k = 0; k < 16; k++) s += x[m][k] * y[k][n];
        r = bits_float(in[l][6 + i]) + s;
        memcpy(&out[l][i], &r, 4);
      }
  });
}

void fence() { acquire_release(nullptr, true, true); }

// Release publishes what a barrier of this CTA gathered, acquire learns what others published at the same address.
void acquire_release(const void* p, bool acquire, bool release) {
  auto& there = released[p];
  there.resize(current->seen.size());
  Fiber& f = *current;
  if (release) {
    for (size_t i = 0; i < there.size(); i++) there[i] = std::max(there[i], f.seen[i]);
    there[cta().index] = std::max(there[cta().index], cta().phase);
  }
  if (acquire)
    for (size_t i = 0; i < there.size(); i++) f.seen[i] = std::max(f.seen[i], there[i]);
}

void reads(const void* p, size_t bytes, size_t align) {
  if ((uintptr_t)p % align) fail("loads %zu bytes from an address of less alignment", bytes);
  touch(p, bytes, false);
}
void writes(const void* p, size_t bytes, size_t align) {
  if ((uintptr_t)p % align) fail("stores %zu bytes to an address of less alignment", bytes);
  touch(p, bytes, true);
}

namespace {
void settle(Cta& c, int index, Dim grid, Dim block, size_t dynamic, int first) {
  int threads = block.x * block.y * block.z, total = grid.x * grid.y * grid.z;
  c.live = true;
  c.index = index;
  c.running = threads;
  c.arrived = 0;
  c.phase = 1;
  c.dynamic = dynamic;
  c.used = (kGuard + dynamic + kGuard + 127) / 128 * 128;
  c.statics.clear();
  memset(c.shared, 0xFF, kShared);  // NaN in every floating type
  c.shadow.assign(c.used, Access());
  c.warps.assign((threads + 31) / 32, Warp());
  c.fibers.clear();
  for (int t = 0; t < threads; t++) {
    Fiber& f = fibers[first + t];
    unsigned u = t, b = index;
    f.at = {{u % block.x, u / block.x % block.y, u / block.x / block.y},
            {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y}, block, grid};
    f.cta = &c - ctas.data();
    f.thread = t;
    f.warp = t / 32;
    f.lane = t % 32;
    f.done = f.arrived = false;
    f.gate = nullptr;
    f.groups.clear();
    f.open.clear();
    f.seen.assign(total, 0);
    c.warps[f.warp].size = ++c.warps[f.warp].live;
    c.fibers.push_back(&f);
    start(f);
  }
}

void leave(Cta& c) {
  auto clean = [&](size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
      if ((uint8_t)c.shared[i] != 0xFF) fail("shared memory was written outside what was asked for, at byte %zu", i);
  };
  clean(0, kGuard);
  clean(kGuard + c.dynamic, kGuard + c.dynamic + kGuard);
  c.live = false;
}

void run_all(Dim grid, Dim block, size_t dynamic) {
  int total = grid.x * grid.y * grid.z, threads = block.x * block.y * block.z;
  if (grid.x % cluster_size) fail("a grid of %u is none of clusters of %d", grid.x, cluster_size);
  int groups = total / cluster_size, resident = std::min({groups, std::max(1, limit / cluster_size), 1 + (int)(draw() % 24)});
  std::vector<int> order(groups);
  for (int i = 0; i < groups; i++) order[i] = i;
  for (int i = groups - 1; i > 0; i--) std::swap(order[i], order[draw() % (i + 1)]);
  clusters.assign(resident, Cluster());
  ctas.assign(resident * cluster_size, Cta());
  fibers.assign(ctas.size() * threads, Fiber());
  stacks_bytes = fibers.size() * kStack;
  stacks = (char*)mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (size_t i = 0; i < fibers.size(); i++) fibers[i].stack = stacks + i * kStack;
  for (Cta& c : ctas) c.shared = (char*)aligned_alloc(1024, kShared);
  int next = 0, alive = 0;
  auto fill = [&](int place) {
    clusters[place].running = cluster_size * threads;
    clusters[place].arrived = 0;
    for (int i = place * cluster_size, k = 0; k < cluster_size; i++, k++)
      settle(ctas[i], order[next] * cluster_size + k, grid, block, dynamic, i * threads);
    next++;
  };
  for (int i = 0; i < resident; i++) fill(i), alive++;
  while (alive) {
    bool moved = false;
    // a warp at a time, in an order that the seed decides
    int warps_of = (threads + 31) / 32, slots = ctas.size() * warps_of;
    for (int k = 0, from = draw() % slots, by = 1 + 2 * (draw() % slots); k < slots; k++) {
      int slot = draw() % 4 ? (from + k * by) % slots : (from + k) % slots;
      Cta& c = ctas[slot / warps_of];
      if (!c.live) continue;
      int w = slot % warps_of, lanes = c.warps[w].size, turn = draw() % lanes;
      for (int l = 0; l < lanes; l++) {
        Fiber& f = *c.fibers[w * 32 + (turn + l) % lanes];
        if (f.done || (f.gate && *f.gate == f.closed)) continue;
        f.gate = nullptr;
        current = &f;
        here = &f.at;
        moved = true;
        emu_switch(&scheduler_sp, f.sp);
        current = nullptr;
      }
      if (c.running == 0) {
        leave(c);
        moved = true;
        int place = (&c - ctas.data()) / cluster_size;
        Cta* first = &ctas[place * cluster_size];
        if (std::any_of(first, first + cluster_size, [](Cta& one) { return one.live; })) continue;
        next < groups ? fill(place) : (void)alive--;
      }
    }
    // the odd step above may miss warps: a deadlock is one only if no warp at all can go on
    if (!moved) {
      bool any = false;
      for (Cta& c : ctas)
        if (c.live)
          for (Fiber* f : c.fibers) any |= !f->done && !(f->gate && *f->gate == f->closed);
      if (!any) fail("deadlock: all threads wait");
    }
  }
}
}  // namespace

void launch(Dim grid, Dim block, int cluster, size_t dynamic, std::function<void()> kernel) {
  problem.clear();
  cluster_size = cluster;
  body = std::move(kernel);
  released.clear();
  for (Range& r : ranges) r.shadow.assign(r.end - r.begin, Access());
  static char signal_stack[64 << 10];
  stack_t own = {}, old_stack = {};
  own.ss_sp = signal_stack;
  own.ss_size = sizeof signal_stack;
  sigaltstack(&own, &old_stack);
  struct sigaction act = {}, old = {}, old_bus = {};
  act.sa_sigaction = on_fault;
  act.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &act, &old);
  sigaction(SIGBUS, &act, &old_bus);
  if (dynamic + 4 * kGuard > kShared)
    problem = "asks for more shared memory than there is";
  else if (sigsetjmp(escape, 1) == 0) {
    jump_ready = true;
    run_all(grid, block, dynamic);
  }
  jump_ready = false;
  current = nullptr;
  here = &nowhere;
  sigaction(SIGSEGV, &old, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);
  for (Cta& c : ctas) free(c.shared);
  ctas.clear();
  fibers.clear();
  if (stacks) munmap(stacks, stacks_bytes);
  stacks = nullptr;
}
}  // namespace emu

extern "C" {
__attribute__((visibility("default"))) void emu_configure(uint64_t seed, int residents) {
  emu::random_state = seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  emu::early = emu::draw() & 1;
  emu::limit = residents;
}
// memory whose accesses are watched: the arguments
__attribute__((visibility("default"))) void emu_watch(char* begin, size_t bytes) {
  emu::ranges.push_back({begin, begin + bytes, {}});
}
__attribute__((visibility("default"))) void emu_forget() { emu::ranges.clear(); }

#define HOOK(n)                                                        \
  void __tsan_read##n(void* p) { emu::touch(p, n, false); }            \
  void __tsan_write##n(void* p) { emu::touch(p, n, true); }            \
  void __tsan_unaligned_read##n(void* p) { emu::touch(p, n, false); }  \
  void __tsan_unaligned_write##n(void* p) { emu::touch(p, n, true); }  \
  void __tsan_volatile_read##n(void* p) { emu::touch(p, n, false); }   \
  void __tsan_volatile_write##n(void* p) { emu::touch(p, n, true); }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
void __tsan_read_range(void* p, size_t n) { emu::touch(p, n, false); }
void __tsan_write_range(void* p, size_t n) { emu::touch(p, n, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}
