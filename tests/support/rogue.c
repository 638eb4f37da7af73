/* The first process of a guest that does not behave; compiled once for each kind of misbehaviour (-DROGUE=...). */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#define HANG 1          /* says something on the console, without an end of line, and stays */
#define OLD 2           /* answers the greeting in version 2 of the protocol */
#define GARBAGE 3       /* writes bytes of no meaning before it is greeted, for ever */
#define JUNK 4          /* answers the greeting, then writes bytes of no meaning */
#define FLOOD 5         /* answers the greeting, then writes log messages as fast as it can, whatever its credit */
#define CHATTER 6       /* answers the greeting, then writes log messages as fast as the credit allows, for ever */
#define POWEROFF 7      /* ends the machine at once */
#define CRASH 8         /* dies, and the kernel with it */

enum { PAYLOAD = 65536 };
/* As much as one DATA frame holds. */
static unsigned char buffer[1 << 20];
static const char preface[8] = "\xc1" "CLOCHE\x01";

static void put(uint64_t value, int size, unsigned char **at)
{
    for (; size > 0; size--, value >>= 8)
        *(*at)++ = value & 0xff;
}

static void frame_head(int type, uint32_t stream, uint32_t length, unsigned char **at)
{
    put(type, 4, at);
    put(stream, 4, at);
    put(length, 4, at);
}

static void write_all(int port, const unsigned char *from, const unsigned char *to)
{
    while (from < to) {
        ssize_t written = write(port, from, to - from);
        if (written > 0)
            from += written;
        else if (written < 0 && errno != EAGAIN && errno != EINTR)
            return;
    }
}

/* Writes to the serial port itself: no driver of the kernel's stands in between. */
static void say(const char *text)
{
    if (ioperm(0x3f8, 8, 1) == 0)
        for (; *text; text++)
            outb(*text, 0x3f8);
}

static int open_port(void)
{
    int port;
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, "");
    while ((port = open("/dev/vport0p1", O_RDWR)) < 0)
        usleep(1000);
    return port;
}

/* Waits for the greeting and answers it; `version` is the protocol's. */
static void greet(int port, int version)
{
    size_t have = 0;
    unsigned char *at = buffer;
    /* preface with key, head of the frame, version, nonce */
    while (have < 40 + 12 + 2 + 32) {
        ssize_t got = read(port, buffer + have, sizeof buffer - have);
        if (got > 0)
            have += got;
        else
            usleep(1000);
    }
    unsigned char nonce[32];
    memcpy(nonce, buffer + 40 + 12 + 2, sizeof nonce);
    memcpy(at, preface, sizeof preface);
    at += sizeof preface;
    memcpy(at, nonce, sizeof nonce);
    at += sizeof nonce;
    frame_head(2, 0, 2 + 32 + 1 + 4 + (version == 1 ? 28 : 0), &at);
    put(version, 2, &at);
    memset(at, 'a', 32);
    at += 32;
    put(1, 1, &at);
    put(version == 1 ? 1 : 0, 4, &at);
    if (version == 1) {
        put(0, 4, &at);
        put(0, 8, &at);
        put(0, 8, &at);
        put(262144, 8, &at);
    }
    put(0x0a, 1, &at);
    write_all(port, buffer, at);
}

/* Writes one DATA frame on stream 1. */
static uint64_t send_data(int port, uint64_t offset, const unsigned char *data, uint32_t size)
{
    static unsigned char frame[PAYLOAD + 64];
    unsigned char *at = frame;
    frame_head(3, 1, size + 8, &at);
    put(offset, 8, &at);
    memcpy(at, data, size);
    at += size;
    put(0x0a, 1, &at);
    write_all(port, frame, at);
    return offset + size;
}

/* Writes log messages for ever; with `polite`, only as much as the host has given credit for. */
static void chatter(int port, int polite)
{
    unsigned char message[1024], *at = message;
    put(1 + 1 + 4 + 1000, 4, &at);
    put(73, 1, &at);
    put(3, 1, &at);
    put(1000, 4, &at);
    memset(at, 'x', 1000);
    at += 1000;
    uint64_t offset = 0, limit = 262144;
    size_t have = 0;
    for (;;) {
        while (!polite || offset + (at - message) <= limit)
            offset = send_data(port, offset, message, at - message);
        ssize_t got = read(port, buffer + have, sizeof buffer - have);
        if (got > 0)
            have += got;
        size_t used = 0;
        while (have - used >= 13) {
            unsigned char *head = buffer + used;
            uint32_t stream, length;
            memcpy(&stream, head + 4, 4);
            memcpy(&length, head + 8, 4);
            if (have - used < 13 + (size_t)length)
                break;
            if (head[0] == 4 && stream == 1)
                memcpy(&limit, head + 20, 8);
            used += 13 + length;
        }
        memmove(buffer, buffer + used, have -= used);
    }
}

int main(void)
{
    int port;
    switch (ROGUE) {
    case HANG:
        say("first line\nhere the \033[31mguest\033[2J stops");
        for (;;)
            pause();
    case OLD:
        greet(open_port(), 2);
        for (;;)
            pause();
    case GARBAGE:
        port = open_port();
        memset(buffer, 0x55, sizeof buffer);
        for (;;)
            write_all(port, buffer, buffer + sizeof buffer);
    case JUNK:
        greet(port = open_port(), 1);
        memset(buffer, 0x55, sizeof buffer);
        for (;;)
            write_all(port, buffer, buffer + sizeof buffer);
    case FLOOD:
        greet(port = open_port(), 1);
        chatter(port, 0);
    case CHATTER:
        greet(port = open_port(), 1);
        chatter(port, 1);
    case POWEROFF:
        reboot(RB_POWER_OFF);
    }
    return 1;
}
