/* Stands in for libcuda.so.1 where there is no GPU: the functions for virtual memory, over the host's memory, as strict
 * about what they are given as the CUDA Driver API says the real ones are. It is for tests alone. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
enum { GRANULARITY = 2 << 20, POSIX_DESCRIPTOR = 1, PINNED = 1, ON_DEVICE = 1, READ_WRITE = 3, DEVICE = 1 };

typedef struct { int type, id; } Location;
typedef struct {
    int type, handle_types;
    Location location;
    void *win32;
    unsigned char flags[8];
} Properties;
typedef struct { Location location; int flags; } Access;

static unsigned long long mapped[64]; /* addresses at which memory is mapped */

static unsigned long long *found(unsigned long long address) {
    for (size_t place = 0; place < sizeof mapped / sizeof *mapped; place++)
        if (mapped[place] == address) return &mapped[place];
    return NULL;
}

static int described(const Properties *what) {
    return what && what->type == PINNED && what->handle_types == POSIX_DESCRIPTOR && what->location.type == ON_DEVICE &&
           what->location.id == DEVICE;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

int cuMemGetAllocationGranularity(size_t *granularity, const Properties *what, int option) {
    if (!described(what) || option != 0) return INVALID_VALUE;
    *granularity = GRANULARITY;
    return SUCCESS;
}

int cuMemCreate(unsigned long long *handle, size_t size, const Properties *what, unsigned long long flags) {
    if (!described(what) || flags || size == 0 || size % GRANULARITY) return INVALID_VALUE;
    if (getenv("NO_ROOM")) return OUT_OF_MEMORY;
    int descriptor = memfd_create("gpu", MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, (off_t)size)) return OUT_OF_MEMORY;
    *handle = (unsigned long long)descriptor;
    return SUCCESS;
}

int cuMemExportToShareableHandle(void *descriptor, unsigned long long handle, int kind, unsigned long long flags) {
    if (kind != POSIX_DESCRIPTOR || flags) return INVALID_VALUE;
    *(int *)descriptor = dup((int)handle);
    return SUCCESS;
}

int cuMemImportFromShareableHandle(unsigned long long *handle, void *descriptor, int kind) {
    int copy = kind == POSIX_DESCRIPTOR ? dup((int)(uintptr_t)descriptor) : -1;
    if (copy < 0) return INVALID_VALUE;
    *handle = (unsigned long long)copy;
    return SUCCESS;
}

int cuMemAddressReserve(unsigned long long *address, size_t size, size_t alignment, unsigned long long wanted,
                        unsigned long long flags) {
    if (size == 0 || size % GRANULARITY || alignment || wanted || flags) return INVALID_VALUE;
    void *reserved = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED) return OUT_OF_MEMORY;
    *address = (uintptr_t)reserved;
    return SUCCESS;
}

int cuMemMap(unsigned long long address, size_t size, size_t offset, unsigned long long handle, unsigned long long flags) {
    struct stat status;
    if (offset || flags || fstat((int)handle, &status) || (size_t)status.st_size != size) return INVALID_VALUE;
    void *at = (void *)(uintptr_t)address;
    if (found(address) || !found(0)) return INVALID_VALUE;
    *found(0) = address;
    return mmap(at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, (int)handle, 0) == at ? SUCCESS : INVALID_VALUE;
}

int cuMemSetAccess(unsigned long long address, size_t size, const Access *access, size_t count) {
    if (count != 1 || access->location.type != ON_DEVICE || access->location.id != DEVICE || access->flags != READ_WRITE)
        return INVALID_VALUE;
    if (getenv("NO_ACCESS")) return INVALID_VALUE;
    return mprotect((void *)(uintptr_t)address, size, PROT_READ | PROT_WRITE) ? INVALID_VALUE : SUCCESS;
}

int cuMemUnmap(unsigned long long address, size_t size) {
    void *at = (void *)(uintptr_t)address;
    if (!found(address)) return INVALID_VALUE;
    *found(address) = 0;
    void *reserved = mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return reserved == at ? SUCCESS : INVALID_VALUE;
}

int cuMemAddressFree(unsigned long long address, size_t size) {
    if (found(address)) return INVALID_VALUE; /* it is to be unmapped first */
    return munmap((void *)(uintptr_t)address, size) ? INVALID_VALUE : SUCCESS;
}

int cuMemRelease(unsigned long long handle) { return close((int)handle) ? INVALID_VALUE : SUCCESS; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
    static const struct { const char *name; void *function; } all[] = {
        {"cuInit", cuInit},
        {"cuDriverGetVersion", cuDriverGetVersion},
        {"cuGetProcAddress", cuGetProcAddress_v2},
        {"cuMemGetAllocationGranularity", cuMemGetAllocationGranularity},
        {"cuMemCreate", cuMemCreate},
        {"cuMemExportToShareableHandle", cuMemExportToShareableHandle},
        {"cuMemImportFromShareableHandle", cuMemImportFromShareableHandle},
        {"cuMemAddressReserve", cuMemAddressReserve},
        {"cuMemMap", cuMemMap},
        {"cuMemSetAccess", cuMemSetAccess},
        {"cuMemUnmap", cuMemUnmap},
        {"cuMemAddressFree", cuMemAddressFree},
        {"cuMemRelease", cuMemRelease},
    };
    (void)version, (void)flags;
    *function = NULL;
    for (size_t place = 0; place < sizeof all / sizeof *all; place++)
        if (!strcmp(name, all[place].name)) *function = all[place].function;
    if (found) *found = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
