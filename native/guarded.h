/*
 * Memory that ends right before a page nobody may touch: one byte too far is a SIGSEGV even without a sanitizer.
 * For the unit tests, which define _GNU_SOURCE (MAP_ANONYMOUS) before they include anything.
 */
#ifndef TRAILBOSS_GUARDED_H
#define TRAILBOSS_GUARDED_H

#include "check.h"

#include <dirent.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define INPUT_SIZE_MAX ((size_t)16 * 1024)

static uint8_t *guard_page; /* the first byte that must not be touched */

static void open_guarded_area(void)
{
    const size_t page_size = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *area =
        mmap(NULL, INPUT_SIZE_MAX + page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(area != MAP_FAILED);
    CHECK(INPUT_SIZE_MAX % page_size == 0);
    guard_page = area + INPUT_SIZE_MAX;
    CHECK(mprotect(guard_page, page_size, PROT_NONE) == 0);
}

/* A copy of the bytes that ends at the guard page. */
static const uint8_t *guarded(const void *data, size_t size)
{
    CHECK(size <= INPUT_SIZE_MAX);
    memmove(guard_page - size, data, size);
    return guard_page - size;
}

/* Calls `test` with the content of every file of a folder; returns how many there are. */
static unsigned int test_folder(const char *path, void (*test)(const uint8_t *bytes, size_t size))
{
    uint8_t bytes[INPUT_SIZE_MAX];
    unsigned int count = 0;
    DIR *folder = opendir(path);

    CHECK(folder != NULL);
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        char name[4096];
        FILE *file = NULL;
        size_t size = 0;

        if (entry->d_name[0] == '.') {
            continue;
        }
        CHECK(snprintf(name, sizeof name, "%s/%s", path, entry->d_name) < (int)sizeof name);
        file = fopen(name, "rb");
        CHECK(file != NULL);
        size = fread(bytes, 1, sizeof bytes / 2, file);
        CHECK(fclose(file) == 0);
        test(bytes, size);
        count += 1;
    }
    CHECK(closedir(folder) == 0);
    return count;
}

#endif
