/*
 * What a guest does with its devices in the trial of what they can do (tests/domain/test_abilities.py).
 *
 *   make FILE BYTES          what the others expect to find (done on the host)
 *   read FILE BYTES          to stdout, past the page cache where the file allows it
 *   write FILE               stdin, in whole pages, and onto the disk if it is one
 *   files OLD NEW            reads OLD again and again and writes NEW again and again
 *   pages DEVICE             writes pages of a disk and reads others
 *   buffers DEVICE           has the disk fill memory that no program touches
 *   random DEVICE            reads random numbers
 *   frames CARD              sends frames to somebody who sends them back
 *
 * The last five go on until stdin ends, say on stdout how often they went round, check everything, and say "right N" at
 * the end. Whatever is wrong is said on stderr, with status 1. What a place of a file or a disk holds is a function of
 * the place alone (see `word`), so that host and guest know it without telling each other.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGE = 4096, PIECE = 16 * PAGE, BUFFERS = 64, DISK_PAGES = 4096, ETHERTYPE = 0x88B5 /* for experiments */ };

static char pages[BUFFERS * PIECE] __attribute__((aligned(PAGE)));

static void fail(const char *what, long long place)
{
    fprintf(stderr, "%s at %lld: %s\n", what, place, strerror(errno));
    exit(1);
}

/* The 64 bits at a place, for one writer of many. */
static uint64_t word(uint64_t place, uint64_t writer)
{
    return (place + 1) * 0x9E3779B97F4A7C15u ^ writer * 0xC2B2AE3D27D4EB4Fu;
}

static void fill(char *buffer, size_t size, uint64_t place, uint64_t writer)
{
    for (size_t at = 0; at < size; at += 8) {
        uint64_t value = word(place + at, writer);
        memcpy(buffer + at, &value, 8);
    }
}

static int is_right(const char *buffer, size_t size, uint64_t place, uint64_t writer)
{
    for (size_t at = 0; at < size; at += 8) {
        uint64_t value = word(place + at, writer);
        if (memcmp(buffer + at, &value, 8))
            return 0;
    }
    return 1;
}

static void check(const char *buffer, size_t size, uint64_t place, uint64_t writer)
{
    errno = 0;
    if (!is_right(buffer, size, place, writer))
        fail("wrong data", place);
}

static int open_or_fail(const char *path, int flags)
{
    int fd = open(path, flags, 0644);
    if (fd < 0)
        fail(path, 0);
    return fd;
}

/* Says how far it is; false when stdin has ended. */
static int go_on(unsigned rounds)
{
    struct pollfd input = {0, POLLIN, 0};
    printf("%u\n", rounds);
    fflush(stdout);
    return poll(&input, 1, 0) == 0;
}

static void read_piece(int fd, char *buffer, size_t size, off_t place)
{
    if (pread(fd, buffer, size, place) != (ssize_t)size)
        fail("read", place);
}

static void write_piece(int fd, const char *buffer, size_t size, off_t place)
{
    if (pwrite(fd, buffer, size, place) != (ssize_t)size)
        fail("write", place);
}

static void make(const char *path, off_t size)
{
    int fd = open_or_fail(path, O_WRONLY | O_CREAT | O_TRUNC);
    for (off_t place = 0; place < size; place += PIECE) {
        fill(pages, PIECE, place, 0);
        write_piece(fd, pages, PIECE, place);
    }
}

static void show(const char *path, size_t left)
{
    int fd = open(path, O_RDONLY | O_DIRECT);
    if (fd < 0)
        fd = open_or_fail(path, O_RDONLY);
    while (left) {
        ssize_t got = read(fd, pages, left < sizeof pages ? (left + PAGE - 1) / PAGE * PAGE : sizeof pages);
        if (got <= 0)
            fail("read", left);
        size_t wanted = (size_t)got < left ? (size_t)got : left;
        if (fwrite(pages, 1, wanted, stdout) != wanted)
            fail("stdout", left);
        left -= wanted;
    }
}

static void store(const char *path)
{
    int fd = open_or_fail(path, O_WRONLY);
    size_t got = fread(pages, 1, sizeof pages, stdin);
    got = (got + PAGE - 1) / PAGE * PAGE;
    for (size_t done = 0; done < got;) {
        ssize_t taken = write(fd, pages + done, got - done);
        if (taken <= 0)
            fail("write", done);
        done += taken;
    }
    if (fsync(fd) && errno != EINVAL)
        fail("fsync", 0);
}

/* Both files stay open all the time, the new one is also found by its name, and nothing stays in the page cache. */
static unsigned work_on_files(const char *old, const char *fresh)
{
    int from = open_or_fail(old, O_RDONLY), into = open_or_fail(fresh, O_RDWR | O_CREAT | O_EXCL);
    off_t size = lseek(from, 0, SEEK_END);
    unsigned round = 0;
    do {
        round++;
        for (off_t place = 0; place < size; place += PIECE) {
            read_piece(from, pages, PIECE, place);
            check(pages, PIECE, place, 0);
            fill(pages, PIECE, place, round);
            write_piece(into, pages, PIECE, place);
        }
        if (fdatasync(into) || posix_fadvise(into, 0, 0, POSIX_FADV_DONTNEED))
            fail("flush", round);
        posix_fadvise(from, 0, 0, POSIX_FADV_DONTNEED);
        int again = open_or_fail(fresh, O_RDONLY);
        for (off_t place = 0; place < size; place += PIECE) {
            read_piece(again, pages, PIECE, place);
            check(pages, PIECE, place, round);
        }
        close(again);
    } while (go_on(round));
    return round;
}

/* Every page is written in turn, each time by another writer, and the one written longest ago is looked at. */
static unsigned work_on_pages(const char *device)
{
    static unsigned writer[DISK_PAGES];
    int fd = open_or_fail(device, O_RDWR | O_DIRECT);
    unsigned round = 0;
    for (off_t place = 0; place < (off_t)DISK_PAGES * PAGE; place += PIECE) {
        fill(pages, PIECE, place, 0);
        write_piece(fd, pages, PIECE, place);
    }
    do {
        for (int count = 0; count < 64; count++) {
            unsigned page = (round * 64 + count) * 769u % DISK_PAGES, other = (page + 769u) % DISK_PAGES;
            writer[page] = round + 1;
            fill(pages, PAGE, (uint64_t)page * PAGE, writer[page]);
            write_piece(fd, pages, PAGE, (off_t)page * PAGE);
            read_piece(fd, pages + PAGE, PAGE, (off_t)other * PAGE);
            check(pages + PAGE, PAGE, (uint64_t)other * PAGE, writer[other]);
        }
        if (fdatasync(fd))
            fail("flush", round);
        round++;
    } while (go_on(round));
    for (unsigned page = 0; page < DISK_PAGES; page++) {
        read_piece(fd, pages, PAGE, (off_t)page * PAGE);
        check(pages, PAGE, (uint64_t)page * PAGE, writer[page]);
    }
    return round;
}

/* Only the device writes into the buffers: whether what it wrote last is there is seen at the end, and not before. */
static unsigned work_on_buffers(const char *device)
{
    static off_t held[BUFFERS];
    int fd = open_or_fail(device, O_RDONLY | O_DIRECT);
    unsigned round = 0, stale = 0;
    do {
        for (unsigned index = 0; index < BUFFERS; index++) {
            held[index] = (off_t)((round * 7 + index) % (DISK_PAGES * PAGE / PIECE)) * PIECE;
            read_piece(fd, pages + index * PIECE, PIECE, held[index]);
        }
        round++;
    } while (go_on(round));
    for (unsigned index = 0; index < BUFFERS; index++)
        for (unsigned at = 0; at < PIECE; at += PAGE)
            stale += !is_right(pages + index * PIECE + at, PAGE, held[index] + at, 0);
    if (stale) {
        fprintf(stderr, "stale pages: %u of %u\n", stale, BUFFERS * PIECE / PAGE);
        exit(1);
    }
    return round;
}

static unsigned work_on_numbers(const char *device)
{
    char numbers[2][64] = {{0}};
    int fd = open_or_fail(device, O_RDONLY);
    unsigned round = 0;
    do {
        round++;
        if (read(fd, numbers[round % 2], 64) != 64)
            fail("read", round);
        errno = 0;
        if (!memcmp(numbers[0], numbers[1], 64))
            fail("the same numbers", round);
    } while (go_on(round));
    return round;
}

static int open_card(const char *name, unsigned char *own)
{
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETHERTYPE));
    struct sockaddr_ll place = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE)};
    struct ifreq card = {0};
    strncpy(card.ifr_name, name, IFNAMSIZ - 1);
    place.sll_ifindex = if_nametoindex(name);
    if (fd < 0 || bind(fd, (struct sockaddr *)&place, sizeof place) || ioctl(fd, SIOCGIFHWADDR, &card))
        fail(name, 0);
    memcpy(own, card.ifr_hwaddr.sa_data, ETH_ALEN);
    if (ioctl(fd, SIOCGIFFLAGS, &card))
        fail(name, 1);
    card.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &card))
        fail(name, 2);
    return fd;
}

/* Whether the frame comes back before a while is over; what comes late, a second time, is passed over. */
static int comes_back(int fd, const char *frame, ssize_t size)
{
    static char got[ETH_FRAME_LEN];
    struct pollfd input = {fd, POLLIN, 0};
    while (poll(&input, 1, 500) > 0) {
        if (recv(fd, got, sizeof got, 0) == size && !memcmp(got + 14, frame + 14, size - 14))
            return 1;
    }
    return 0;
}

/* A frame may be lost on the way, as on any wire, and is sent again; nothing that comes back is another than was sent. */
static unsigned work_on_frames(const char *name)
{
    static char frame[ETH_FRAME_LEN] __attribute__((aligned(8)));
    unsigned char own[ETH_ALEN];
    int fd = open_card(name, own);
    unsigned round = 0;
    do {
        for (unsigned count = 0; count < 32; count++) {
            size_t size = 64 + (round * 32 + count) * 97 % 1400;
            fill(frame, sizeof frame / 8 * 8, (uint64_t)round * 32 + count, 1);
            memcpy(frame, "\x02\0\0\0\0\x02", ETH_ALEN);
            memcpy(frame + ETH_ALEN, own, ETH_ALEN);
            memcpy(frame + 2 * ETH_ALEN, (uint16_t[]){htons(ETHERTYPE)}, 2);
            unsigned tries = 0;
            do {
                if (tries++ == 100)
                    fail("no answer", round);
                if (send(fd, frame, size, 0) < 0 && errno != ENOBUFS && errno != ENETDOWN)
                    fail("send", round);
            } while (!comes_back(fd, frame, size));
        }
        round++;
    } while (go_on(round));
    return round;
}

int main(int count, char **words)
{
    const char *what = count > 2 ? words[1] : "";
    if (!strcmp(what, "make") && count == 4)
        make(words[2], strtol(words[3], NULL, 10));
    else if (!strcmp(what, "read") && count == 4)
        show(words[2], strtoul(words[3], NULL, 10));
    else if (!strcmp(what, "write"))
        store(words[2]);
    else if (!strcmp(what, "files") && count == 4)
        printf("right %u\n", work_on_files(words[2], words[3]));
    else if (!strcmp(what, "pages"))
        printf("right %u\n", work_on_pages(words[2]));
    else if (!strcmp(what, "buffers"))
        printf("right %u\n", work_on_buffers(words[2]));
    else if (!strcmp(what, "random"))
        printf("right %u\n", work_on_numbers(words[2]));
    else if (!strcmp(what, "frames"))
        printf("right %u\n", work_on_frames(words[2]));
    else
        return 2;
    return fflush(stdout) != 0;
}
