/* Threads and scratch memory for a CPU library, linked into every one of them.
 *
 * Code that TVM generates for LLVM reaches its runtime through pointers named __TVMBackend*, which it
 * defines as weak, null, exported symbols for the loader to fill. They are defined here instead, strong
 * and hidden: the linker takes these, the loader cannot find them, and so the library always runs on the
 * functions below, whatever else (TVM itself, another artifact) lives in the process. The process-wide
 * table behind TVMFFIEnvModRegisterContextSymbol is not touched: an entry there would dangle when this
 * library is unloaded.
 *
 * OpenMP's runtime is found by the name libgomp.so.1, which torch's own copy bears: where torch is loaded
 * first there is one pool of threads, and torch.set_num_threads counts here too. */
#include <omp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define EXPORT __attribute__((visibility("default")))

/* --- ABI: tvm/runtime/c_backend_api.h and tvm/ffi/c_api.h, the same in tvm-ffi 0.1.11 to 0.1.14 ------ */

typedef struct {
  void *sync_handle;
  int32_t num_task;
} GroupEnv;
typedef int (*Task)(int task_id, GroupEnv *env, void *data);

typedef struct {
  int32_t type_index;
  uint32_t padding;
  int64_t value;
} Any;
enum { ANY_INT = 1 };

extern void TVMFFIErrorMoveFromRaised(void **error);
extern void TVMFFIErrorSetRaised(void *error);
extern void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
extern int TVMFFIObjectDecRef(void *object);

/* --- parallel loops ---------------------------------------------------------------------------------- */

/* Rows are uneven (ragged lengths), so each thread takes several tasks, one at a time. */
enum { TASKS_PER_THREAD = 4 };

static int chosen_threads; /* 0: as many as OpenMP would use */

static int thread_count(void) {
  if (omp_in_parallel()) return 1; /* a nested loop is serial */
  int chosen = __atomic_load_n(&chosen_threads, __ATOMIC_RELAXED);
  return chosen > 0 ? chosen : omp_get_max_threads();
}

static int parallel_launch(Task task, void *data, int num_task) {
  int threads = thread_count();
  GroupEnv env = {NULL, num_task > 0 ? num_task : threads == 1 ? 1 : threads * TASKS_PER_THREAD};
  if (threads == 1 || env.num_task == 1) {
    for (int i = 0; i < env.num_task; ++i) {
      int code = task(i, &env, data);
      if (code != 0) return code;
    }
    return 0;
  }
  int failed = 0;
  void *error = NULL; /* tvm-ffi keeps a raised error per thread: carry the first one to the caller's */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int i = 0; i < env.num_task; ++i) {
    if (__atomic_load_n(&failed, __ATOMIC_RELAXED)) continue;
    int code = task(i, &env, data);
    if (code == 0) continue;
    void *mine = NULL;
    TVMFFIErrorMoveFromRaised(&mine);
    int none = 0;
    if (__atomic_compare_exchange_n(&failed, &none, code, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
      error = mine;
    else if (mine != NULL)
      TVMFFIObjectDecRef(mine);
  }
  if (error != NULL) {
    TVMFFIErrorSetRaised(error);
    TVMFFIObjectDecRef(error);
  }
  return failed;
}

/* Tasks run one after another on a thread, so none can wait for another: generated kernels use no barrier. */
static int parallel_barrier(int task_id, GroupEnv *env) {
  const char *parts[] = {"a kernel uses a barrier between parallel tasks, which host_threads.c does not offer"};
  (void)task_id, (void)env;
  TVMFFIErrorSetRaisedFromCStrParts("InternalError", parts, 1);
  return -1;
}

__attribute__((constructor)) static void read_environment(void) {
  const char *text = getenv("VORTEX_NUM_THREADS");
  long n = text != NULL ? strtol(text, NULL, 10) : 0;
  if (n > 0 && n <= 4096) chosen_threads = (int)n;
}

/* vortex_set_num_threads(n: int) -> int: threads of later calls, 0 for OpenMP's number; returns the old one. */
EXPORT int __tvm_ffi_vortex_set_num_threads(void *self, const Any *args, int32_t count, Any *result) {
  (void)self;
  if (count != 1 || args[0].type_index != ANY_INT || args[0].value < 0 || args[0].value > 4096) {
    const char *parts[] = {"vortex_set_num_threads takes one integer from 0 to 4096"};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 1);
    return -1;
  }
  result->type_index = ANY_INT;
  result->padding = 0;
  result->value = __atomic_exchange_n(&chosen_threads, (int)args[0].value, __ATOMIC_RELAXED);
  return 0;
}

/* --- scratch memory ---------------------------------------------------------------------------------- */

/* A kernel asks for scratch and gives it back in reverse order. Each thread keeps one block per depth and
 * only ever makes it larger, so that a step after the first allocates nothing. */
enum { DEPTHS = 32, ALIGN = 128 };

typedef struct Arena {
  struct Arena *next; /* of all arenas */
  int in_use;         /* by a living thread */
  int depth;          /* blocks handed out */
  void *block[DEPTHS];
  uint64_t size[DEPTHS];
} Arena;

static Arena *all_arenas;
static pthread_mutex_t arenas_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t arena_key;
static _Thread_local Arena *my_arena;

static void leave(void *arena) { __atomic_store_n(&((Arena *)arena)->in_use, 0, __ATOMIC_RELEASE); }

/* A forked child has one thread. OpenMP would wait for those of its parent, so kernels run in the one until another
 * number is set; and whoever held the lock is not there to give it back. */
static void after_fork(void) {
  __atomic_store_n(&chosen_threads, 1, __ATOMIC_RELAXED);
  pthread_mutex_init(&arenas_lock, NULL);
}

__attribute__((constructor)) static void open_arenas(void) {
  pthread_key_create(&arena_key, leave);
  pthread_atfork(NULL, NULL, after_fork); /* glibc forgets it when this library is unloaded */
}

__attribute__((destructor)) static void close_arenas(void) {
  pthread_key_delete(arena_key); /* or a thread that ends later would call into the unloaded library */
  while (all_arenas != NULL) {
    Arena *arena = all_arenas;
    all_arenas = arena->next;
    for (int i = 0; i < DEPTHS; ++i) free(arena->block[i]);
    free(arena);
  }
}

static Arena *enter(void) {
  pthread_mutex_lock(&arenas_lock);
  Arena *arena = all_arenas;
  while (arena != NULL && __atomic_load_n(&arena->in_use, __ATOMIC_ACQUIRE)) arena = arena->next;
  if (arena == NULL && (arena = calloc(1, sizeof *arena)) != NULL) {
    arena->next = all_arenas;
    all_arenas = arena;
  }
  if (arena != NULL) {
    arena->in_use = 1;
    arena->depth = 0;
  }
  pthread_mutex_unlock(&arenas_lock);
  if (arena != NULL) pthread_setspecific(arena_key, arena);
  return my_arena = arena;
}

/* Generated code takes NULL for a raised error. */
static void *no_memory(void) {
  const char *parts[] = {"a kernel finds no memory for its scratch"};
  TVMFFIErrorSetRaisedFromCStrParts("MemoryError", parts, 1);
  return NULL;
}

static void *alloc_workspace(int device_type, int device_id, uint64_t bytes, int type_code, int type_bits) {
  (void)device_type, (void)device_id, (void)type_code, (void)type_bits;
  Arena *arena = my_arena != NULL ? my_arena : enter();
  if (arena == NULL || arena->depth == DEPTHS || bytes > INT64_MAX) return no_memory();
  int i = arena->depth;
  if (arena->size[i] < bytes || arena->block[i] == NULL) {
    uint64_t size = (bytes + ALIGN) / ALIGN * ALIGN;
    void *block = aligned_alloc(ALIGN, size);
    if (block == NULL) return no_memory();
    free(arena->block[i]);
    arena->block[i] = block;
    arena->size[i] = size;
  }
  arena->depth = i + 1;
  return arena->block[i];
}

/* Also drops what lies above it: blocks that a task left behind when it failed. */
static int free_workspace(int device_type, int device_id, void *block) {
  (void)device_type, (void)device_id;
  Arena *arena = my_arena;
  for (int i = arena != NULL ? arena->depth : 0; i-- > 0;)
    if (arena->block[i] == block) {
      arena->depth = i;
      return 0;
    }
  return -1;
}

/* --- what generated code looks for -------------------------------------------------------------------- */

HIDDEN void *__TVMBackendParallelLaunch = (void *)parallel_launch;
HIDDEN void *__TVMBackendParallelBarrier = (void *)parallel_barrier;
HIDDEN void *__TVMBackendAllocWorkspace = (void *)alloc_workspace;
HIDDEN void *__TVMBackendFreeWorkspace = (void *)free_workspace;
