/*
 * Makes one system call of a program fail, once. To be loaded with LD_PRELOAD; x86-64 Linux.
 *
 * Wrapping the functions of libc would not do: Rust's rustix, with which the tempfile crate renames, makes system calls itself. So a
 * seccomp filter turns the calls of interest into SIGSYS, and the handler makes them, or lets one fail. The filter lets pass what
 * comes from the handler's own instruction. The count is of the whole process, whichever thread calls.
 *
 *   FAULT_UNDER   directories, separated by colons; calls on other files are neither counted nor touched
 *   FAULT_LOG     a file that gets a line for each call: its number, name (open, or create to write) and path; "!" stands before the
 *                 one that failed
 *   FAULT_AT      the number of the call that fails, from 1; without it none does
 *   FAULT_ERRNO   what it fails with
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "only x86-64 is supported"
#endif

/* The one instruction whose calls the filter lets pass. */
extern const char real_return[];
long real_call(long number, long a, long b, long c, long d, long e, long f);
__asm__(".text\n"
        ".globl real_call\n"
        "real_call:\n"
        "  mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  mov %rdx, %rsi\n"
        "  mov %rcx, %rdx\n"
        "  mov %r8, %r10\n"
        "  mov %r9, %r8\n"
        "  mov 8(%rsp), %r9\n"
        "  syscall\n"
        ".globl real_return\n"
        "real_return:\n"
        "  ret\n");

/* Where a call says which file it is about. */
enum { BY_DESCRIPTOR, BY_PATH_0, BY_PATH_1, BY_PATH_3, BY_DESCRIPTOR_4 };

static const char opened[] = "open";

static const struct {
    long number;
    const char *name;
    int by;
} calls[] = {
    {SYS_read, "read", BY_DESCRIPTOR},
    {SYS_pread64, "pread", BY_DESCRIPTOR},
    {SYS_write, "write", BY_DESCRIPTOR},
    {SYS_writev, "writev", BY_DESCRIPTOR},
    {SYS_pwrite64, "pwrite", BY_DESCRIPTOR},
    {SYS_copy_file_range, "copy_file_range", BY_DESCRIPTOR},
    {SYS_sendfile, "sendfile", BY_DESCRIPTOR},
    {SYS_fsync, "fsync", BY_DESCRIPTOR},
    {SYS_fdatasync, "fdatasync", BY_DESCRIPTOR},
    {SYS_ftruncate, "ftruncate", BY_DESCRIPTOR},
    {SYS_fallocate, "fallocate", BY_DESCRIPTOR},
    {SYS_getdents64, "getdents", BY_DESCRIPTOR},
    {SYS_mmap, "mmap", BY_DESCRIPTOR_4},
    {SYS_open, opened, BY_PATH_0},
    {SYS_openat, opened, BY_PATH_1},
    {SYS_mkdir, "mkdir", BY_PATH_0},
    {SYS_mkdirat, "mkdir", BY_PATH_1},
    {SYS_rename, "rename", BY_PATH_1},
    {SYS_renameat, "rename", BY_PATH_3},
    {SYS_renameat2, "rename", BY_PATH_3},
    {SYS_link, "link", BY_PATH_1},
    {SYS_linkat, "link", BY_PATH_3},
};
#define CALLS (sizeof calls / sizeof *calls)

static const char *under;
static long fail_at, fail_errno;
static int log_file = -1;
static long counted;

static int is_under(const char *path) {
    for (const char *dir = under; *dir;) {
        size_t length = strcspn(dir, ":");
        if (length && !strncmp(path, dir, length) && (path[length] == '/' || !path[length])) return 1;
        dir += length + (dir[length] == ':');
    }
    return 0;
}

static char *digits(char *end, unsigned long n) {
    do *--end = '0' + n % 10;
    while (n /= 10);
    return end;
}

static void note(long n, int fails, const char *name, const char *path) {
    char line[4400], number[24], *first = digits(number + sizeof number, n);
    size_t at = 0, length = number + sizeof number - first;
    if (fails) line[at++] = '!';
    memcpy(line + at, first, length);
    at += length;
    line[at++] = ' ';
    memcpy(line + at, name, strlen(name));
    at += strlen(name);
    line[at++] = ' ';
    length = strnlen(path, 4096);
    memcpy(line + at, path, length);
    at += length;
    line[at++] = '\n';
    real_call(SYS_write, log_file, (long)line, at, 0, 0, 0);
}

static void on_call(int signal, siginfo_t *info, void *context) {
    (void)signal;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const long args[] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    long number = info->si_syscall;
    char descriptor[40] = "/proc/self/fd/", found[4097];
    const char *path = NULL, *name = "";
    for (size_t i = 0; i < CALLS; i++) {
        if (calls[i].number != number) continue;
        name = calls[i].name;
        switch (calls[i].by) {
        case BY_PATH_0: path = (const char *)args[0]; break;
        case BY_PATH_1: path = (const char *)args[1]; break;
        case BY_PATH_3: path = (const char *)args[3]; break;
        default: {
            char text[24], *first = digits(text + sizeof text - 1, calls[i].by == BY_DESCRIPTOR ? args[0] : args[4]);
            text[sizeof text - 1] = 0;
            strcpy(descriptor + strlen(descriptor), first);
            long length = real_call(SYS_readlink, (long)descriptor, (long)found, sizeof found - 1, 0, 0, 0);
            found[length > 0 ? length : 0] = 0;
            path = found;
        }
        }
    }
    if (name == opened) {
        int flags = number == SYS_open ? args[1] : args[2];
        if (flags & (O_CREAT | O_WRONLY | O_RDWR)) name = "create";
    }
    if (path && is_under(path)) {
        long n = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
        note(n, n == fail_at, name, path);
        if (n == fail_at) {
            r[REG_RAX] = -fail_errno;
            return;
        }
    }
    r[REG_RAX] = real_call(number, args[0], args[1], args[2], args[3], args[4], args[5]);
}

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("FAULT_LOG"), *at = getenv("FAULT_AT"), *error = getenv("FAULT_ERRNO");
    under = getenv("FAULT_UNDER");
    if (!under || !log) return;
    fail_at = at ? atol(at) : 0;
    fail_errno = error ? atol(error) : EIO;
    log_file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    sigaction(SIGSYS, &action, NULL);

    /* Which architecture; from where; which call; and of mmap, whether there is a file. */
    struct sock_filter filter[CALLS + 16];
    size_t n = 0;
    unsigned long from = (unsigned long)real_return;
#define LOAD(offset) filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (offset))
#define IF(value, yes, no) filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define RETURN(what) filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (what))
    LOAD(offsetof(struct seccomp_data, arch));
    IF(AUDIT_ARCH_X86_64, 1, 0);
    RETURN(SECCOMP_RET_ALLOW);
    LOAD(offsetof(struct seccomp_data, instruction_pointer));
    IF((unsigned)from, 0, 3);
    LOAD(offsetof(struct seccomp_data, instruction_pointer) + 4);
    IF((unsigned)(from >> 32), 0, 1);
    RETURN(SECCOMP_RET_ALLOW);
    LOAD(offsetof(struct seccomp_data, nr));
    IF(SYS_mmap, 0, 2);
    LOAD(offsetof(struct seccomp_data, args) + 4 * 8);
    IF((unsigned)-1, CALLS, CALLS + 1);
    for (size_t i = 0; i < CALLS; i++) IF(calls[i].number, CALLS - i, 0);
    RETURN(SECCOMP_RET_ALLOW);
    RETURN(SECCOMP_RET_TRAP);
    struct sock_fprog program = {n, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        static const char failed[] = "fault shim: no seccomp filter\n";
        (void)!write(2, failed, sizeof failed - 1);
        _exit(99);
    }
}
