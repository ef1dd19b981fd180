/* Traces what a process writes below one folder, and kills it there on demand: preloaded, it stands between the
 * process and libc, so Python and SQLite alike can't write past it.
 *
 * In: chaos_arm(folder, mode, stop_at, log). Out: one record per operation in `log`; a SIGKILL before, in the middle
 * of, or after operation number `stop_at` (from 1). An fsync is recorded with the content it makes durable, and isn't
 * counted: it changes nothing that a reader of the same machine can see.
 * Invariants: unarmed it does nothing; an operation is counted whether or not it succeeds, so that numbers are the
 * same in every run; the record of an operation is complete before the operation returns.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, RECORD, KILL_BEFORE, KILL_HALF, KILL_AFTER };
enum kind { CREATE = 1, WRITE, TRUNCATE, SYNC, LINK, RENAME, SYMLINK, UNLINK, MKDIR, RMDIR };
#define PATH_BYTES 4096

static char root[PATH_BYTES];
static size_t root_bytes;
static volatile int armed = OFF;
static long stop_number, counted;
static int log_file = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...)                                                                                          \
    static type (*real)(__VA_ARGS__);                                                                                  \
    if (real == NULL) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void chaos_arm(const char *folder, int mode, long stop_at, const char *log_path) {
    snprintf(root, sizeof root, "%s/", folder);
    root_bytes = strlen(root);
    stop_number = stop_at;
    counted = 0;
    log_file = log_path[0] ? open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    armed = mode;
}

long chaos_disarm(void) {
    armed = OFF;
    if (log_file >= 0) close(log_file);
    log_file = -1;
    return counted;
}

static int below(const char *path) { return strncmp(path, root, root_bytes) == 0; }

static int path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_BYTES - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return below(out) || (strncmp(out, root, root_bytes - 1) == 0 && out[root_bytes - 1] == 0);
}

/* The whole path of `path` as the kernel would look it up from `folder`; whether it lies below the root. */
static int path_at(int folder, const char *path, char *out) {
    if (path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(out, PATH_BYTES, "%s", path);
    } else {
        char base[PATH_BYTES];
        if (folder == AT_FDCWD) {
            if (getcwd(base, sizeof base) == NULL) return 0;
        } else {
            path_of(folder, base);
        }
        if (snprintf(out, PATH_BYTES, "%s/%s", base, path) >= PATH_BYTES) return 0;
    }
    return below(out);
}

static void put(const void *data, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    for (const char *at = data; length > 0;) {
        ssize_t done = real(log_file, at, length);
        if (done <= 0) abort();
        at += done;
        length -= (size_t)done;
    }
}

static void record(int kind, long mode, const char *path, const char *second, int failed, const char *content,
                   long content_bytes) {
    if (log_file < 0) return;
    int64_t head[7] = {kind, counted, mode, (int64_t)strlen(path), (int64_t)strlen(second), failed, content_bytes};
    put(head, sizeof head);
    put(path, strlen(path));
    put(second, strlen(second));
    put(content, (size_t)content_bytes);
}

static long mode_at(const char *path) {
    struct stat found;
    return lstat(path, &found) == 0 ? (long)(found.st_mode & 07777) : 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void before(void) {
    counted++;
    if (armed == KILL_BEFORE && counted == stop_number) die();
}

static void after(int kind, long mode, const char *path, const char *second, int failed) {
    int saved = errno;
    record(kind, mode, path, second, failed, "", 0);
    if (armed == KILL_AFTER && counted == stop_number) die();
    errno = saved;
}

static void record_sync(int fd, const char *path) {
    struct stat found;
    char link[64];
    if (log_file < 0 || fstat(fd, &found) != 0) return;
    char *content = NULL;
    long length = 0;
    if (S_ISREG(found.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        int copy = open(link, O_RDONLY | O_CLOEXEC);
        content = malloc((size_t)found.st_size + 1);
        if (copy < 0 || content == NULL) abort();
        for (ssize_t got; length < found.st_size; length += got) {
            got = pread(copy, content + length, (size_t)(found.st_size - length), length);
            if (got <= 0) abort();
        }
        close(copy);
    }
    record(SYNC, 0, path, "", 0, content ? content : "", length);
    free(content);
}

#define GUARDED(condition, kind, mode, path, second, call)                                                            \
    if (armed == OFF || !(condition)) return call;                                                                     \
    pthread_mutex_lock(&one_at_a_time);                                                                                \
    before();                                                                                                          \
    __typeof__(call) result = call;                                                                                    \
    after(kind, mode, path, second, result < 0);                                                                      \
    pthread_mutex_unlock(&one_at_a_time);                                                                              \
    return result

/* Files opened for writing. Opening an existing one without truncating it writes nothing. */
static int opened(int (*real)(int, const char *, int, ...), int folder, const char *path, int flags, mode_t mode) {
    char whole[PATH_BYTES];
    if (armed == OFF || !(flags & (O_CREAT | O_TRUNC)) || !path_at(folder, path, whole))
        return real(folder, path, flags, mode);
    struct stat found;
    int there = stat(whole, &found) == 0;
    if (there && (!(flags & O_TRUNC) || (flags & O_EXCL) || found.st_size == 0)) return real(folder, path, flags, mode);
    pthread_mutex_lock(&one_at_a_time);
    before();
    int result = real(folder, path, flags, mode);
    after(there ? TRUNCATE : CREATE, mode_at(whole), whole, "", result < 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

static mode_t mode_of(int flags, va_list rest) {
    return (flags & (O_CREAT | O_TMPFILE)) ? (mode_t)va_arg(rest, unsigned) : 0;
}

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        REAL(int, #name, int, const char *, int, ...);                                                                 \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(real, folder, path, flags, mode);                                                                \
    }
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        REAL(int, "openat64", int, const char *, int, ...);                                                            \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_of(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(real, AT_FDCWD, path, flags, mode);                                                              \
    }
OPENAT(openat)
OPENAT(openat64)
OPEN(open)
OPEN(open64)

/* Writes. Half of one is what a kill in the middle of a large write leaves. */
#define WRITES(name, half_call, full_call, size, ...)                                                                  \
    ssize_t name(__VA_ARGS__) {                                                                                        \
        REAL(ssize_t, #name, __VA_ARGS__);                                                                             \
        char path[PATH_BYTES];                                                                                         \
        if (armed == OFF || !path_of(fd, path)) return full_call;                                                      \
        pthread_mutex_lock(&one_at_a_time);                                                                            \
        before();                                                                                                      \
        if (armed == KILL_HALF && counted == stop_number) {                                                            \
            if ((size) > 1 && half_call < 0) abort();                                                                  \
            die();                                                                                                     \
        }                                                                                                              \
        ssize_t result = full_call;                                                                                    \
        after(WRITE, 0, path, "", result < 0);                           \
        pthread_mutex_unlock(&one_at_a_time);                                                                          \
        return result;                                                                                                 \
    }
WRITES(write, real(fd, data, size / 2), real(fd, data, size), size, int fd, const void *data, size_t size)
WRITES(pwrite, real(fd, data, size / 2, at), real(fd, data, size, at), size, int fd, const void *data, size_t size,
       off_t at)
WRITES(pwrite64, real(fd, data, size / 2, at), real(fd, data, size, at), size, int fd, const void *data, size_t size,
       off64_t at)
WRITES(writev, real(fd, parts, count / 2), real(fd, parts, count), count, int fd, const struct iovec *parts, int count)
WRITES(sendfile, real(fd, from, at, size / 2), real(fd, from, at, size), size, int fd, int from, off_t *at, size_t size)
WRITES(sendfile64, real(fd, from, at, size / 2), real(fd, from, at, size), size, int fd, int from, off64_t *at,
       size_t size)

#define TRUNCATES(name, kind_of_size)                                                                                  \
    int name(int fd, kind_of_size length) {                                                                            \
        REAL(int, #name, int, kind_of_size);                                                                           \
        char path[PATH_BYTES];                                                                                         \
        GUARDED(path_of(fd, path), TRUNCATE, 0, path, "",                \
                real(fd, length));                                                                                     \
    }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

/* What is durable from here on. */
#define SYNCS(name)                                                                                                    \
    int name(int fd) {                                                                                                 \
        REAL(int, #name, int);                                                                                         \
        char path[PATH_BYTES];                                                                                         \
        if (armed == OFF || !path_of(fd, path)) return real(fd);                                                       \
        pthread_mutex_lock(&one_at_a_time);                                                                            \
        int result = real(fd), saved = errno;                                                                          \
        if (result == 0) record_sync(fd, path);                                                                        \
        errno = saved;                                                                                                 \
        pthread_mutex_unlock(&one_at_a_time);                                                                          \
        return result;                                                                                                 \
    }
SYNCS(fsync)
SYNCS(fdatasync)

/* Names. */
#define TWO_NAMES(name, kind, from_folder, from, to_folder, to, call, ...)                                             \
    int name(__VA_ARGS__) {                                                                                            \
        REAL(int, #name, __VA_ARGS__);                                                                                 \
        char first[PATH_BYTES], second[PATH_BYTES];                                                                    \
        GUARDED(path_at(to_folder, to, second) && (path_at(from_folder, from, first) || 1), kind, 0,    \
                first, second, call);                                                                                  \
    }
TWO_NAMES(link, LINK, AT_FDCWD, from, AT_FDCWD, to, real(from, to), const char *from, const char *to)
TWO_NAMES(linkat, LINK, a, from, b, to, real(a, from, b, to, flags), int a, const char *from, int b, const char *to,
          int flags)
TWO_NAMES(rename, RENAME, AT_FDCWD, from, AT_FDCWD, to, real(from, to), const char *from, const char *to)
TWO_NAMES(renameat, RENAME, a, from, b, to, real(a, from, b, to), int a, const char *from, int b, const char *to)
TWO_NAMES(renameat2, RENAME, a, from, b, to, real(a, from, b, to, flags), int a, const char *from, int b,
          const char *to, unsigned flags)

int symlink(const char *content, const char *path) {
    REAL(int, "symlink", const char *, const char *);
    char whole[PATH_BYTES];
    GUARDED(path_at(AT_FDCWD, path, whole), SYMLINK, 0, whole, content, real(content, path));
}
int symlinkat(const char *content, int folder, const char *path) {
    REAL(int, "symlinkat", const char *, int, const char *);
    char whole[PATH_BYTES];
    GUARDED(path_at(folder, path, whole), SYMLINK, 0, whole, content, real(content, folder, path));
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    char whole[PATH_BYTES];
    GUARDED(path_at(AT_FDCWD, path, whole), UNLINK, 0, whole, "", real(path));
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char whole[PATH_BYTES];
    GUARDED(path_at(folder, path, whole), (flags & AT_REMOVEDIR) ? RMDIR : UNLINK, 0, whole, "",
            real(folder, path, flags));
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    char whole[PATH_BYTES];
    GUARDED(path_at(AT_FDCWD, path, whole), RMDIR, 0, whole, "", real(path));
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    char whole[PATH_BYTES];
    GUARDED(path_at(AT_FDCWD, path, whole), MKDIR, mode_at(whole), whole, "", real(path, mode));
}
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    char whole[PATH_BYTES];
    GUARDED(path_at(folder, path, whole), MKDIR, mode_at(whole), whole, "", real(folder, path, mode));
}
