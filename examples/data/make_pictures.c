/* make_pictures.c - paints the twelve small colour pictures that lie in pictures/.
 *
 *     cc -O2 make_pictures.c -o make_pictures -lm && ./make_pictures
 *
 * Each picture is a function of a point: it paints layer over layer, the farthest first, and what
 * is left on top is the colour there. A pixel is the mean of 6 x 6 points, so edges are smooth.
 * Writes pictures/NAME.ppm (P6, what a program can read without a decoder) and the same picture as
 * pictures_png/NAME.png. The program and the pictures are under the project's own licence. */

#include "../example.h"

#define SIZE 96 /* pixels of a side */
#define FINE 6  /* points of a pixel, along each side */

/* A point of the picture, 0..1 to the right and downwards, and its colour so far, 0..1. */
typedef struct point {
    double x, y, rgb[3];
} point;

/* ---- Painting -------------------------------------------------------------------------------- */

static double clamp(double v)
{
    return v < 0 ? 0 : v > 1 ? 1 : v;
}

/* 0 below a, 1 above b, smooth between. */
static double ramp(double a, double b, double v)
{
    double t = clamp((v - a) / (b - a));
    return t * t * (3 - 2 * t);
}

/* Covers what is there with a share of a colour. */
static void mix(point *p, double share, int colour)
{
    int k;
    share = clamp(share);
    for (k = 0; k < 3; k++)
        p->rgb[k] += share * ((colour >> (16 - 8 * k) & 255) / 255.0 - p->rgb[k]);
}

static void paint(point *p, int inside, int colour)
{
    if (inside) mix(p, 1, colour);
}

/* Makes what is there lighter (above 1) or darker. */
static void shade(point *p, int inside, double light)
{
    int k;
    for (k = 0; k < 3 && inside; k++) p->rgb[k] = clamp(p->rgb[k] * light);
}

/* From one colour at height y0 to another at y1; only this band is painted. */
static void sky(point *p, double y0, int top, double y1, int bottom)
{
    if (p->y < y0 || p->y > y1) return;
    mix(p, 1, top);
    mix(p, (p->y - y0) / (y1 - y0), bottom);
}

/* ---- Shapes: 1 inside, 0 outside ------------------------------------------------------------- */

static int oval(const point *p, double x, double y, double rx, double ry)
{
    double u = (p->x - x) / rx, v = (p->y - y) / ry;
    return u * u + v * v < 1;
}

/* An oval turned by `angle` about its middle. */
static int leaf(const point *p, double x, double y, double rx, double ry, double angle)
{
    double u = p->x - x, v = p->y - y;
    double a = (u * cos(angle) + v * sin(angle)) / rx, b = (v * cos(angle) - u * sin(angle)) / ry;
    return a * a + b * b < 1;
}

static int box(const point *p, double x0, double y0, double x1, double y1)
{
    return p->x > x0 && p->x < x1 && p->y > y0 && p->y < y1;
}

/* On the left of the line from a to b, as seen by who walks along it. */
static int left_of(const point *p, double ax, double ay, double bx, double by)
{
    return (bx - ax) * (p->y - ay) - (by - ay) * (p->x - ax) < 0;
}

static int triangle(const point *p, double ax, double ay, double bx, double by, double cx,
                    double cy)
{
    int a = left_of(p, ax, ay, bx, by), b = left_of(p, bx, by, cx, cy);
    return a == b && b == left_of(p, cx, cy, ax, ay);
}

/* A thick line with round ends. */
static int stick(const point *p, double ax, double ay, double bx, double by, double radius)
{
    double dx = bx - ax, dy = by - ay, px = p->x - ax, py = p->y - ay;
    double t = clamp((px * dx + py * dy) / (dx * dx + dy * dy));
    return (px - t * dx) * (px - t * dx) + (py - t * dy) * (py - t * dy) < radius * radius;
}

/* A ball, lit from the upper left, with a soft highlight. */
static void ball(point *p, double x, double y, double r, int colour)
{
    double u = (p->x - x) / r, v = (p->y - y) / r, z = 1 - u * u - v * v, light;
    if (z < 0) return;
    light = -0.45 * u - 0.60 * v + 0.66 * sqrt(z);
    paint(p, 1, colour);
    shade(p, 1, 0.55 + 0.55 * (light > 0 ? light : 0));
    mix(p, 0.75 * ramp(0.93, 1.0, light), 0xFFFFFF);
}

/* A crown of leaves: as a ball, but dull. */
static void crown(point *p, double x, double y, double r, int colour)
{
    double u = (p->x - x) / r, v = (p->y - y) / r;
    paint(p, u * u + v * v < 1, colour);
    shade(p, u * u + v * v < 1, 0.98 - 0.16 * u - 0.22 * v);
}

/* The sun in its glow. */
static void sun(point *p, double x, double y, double r, int colour)
{
    mix(p, 0.6 * ramp(2.4 * r, 0.8 * r, hypot(p->x - x, p->y - y)), 0xFFFFE0);
    paint(p, oval(p, x, y, r, r), colour);
}

static void cloud(point *p, double x, double y, double s, int colour)
{
    paint(p, oval(p, x, y, s, 0.42 * s) || oval(p, x - 0.62 * s, y + 0.1 * s, 0.55 * s, 0.3 * s) ||
          oval(p, x + 0.62 * s, y + 0.1 * s, 0.6 * s, 0.3 * s) ||
          oval(p, x + 0.1 * s, y - 0.25 * s, 0.5 * s, 0.42 * s), colour);
}

/* ---- Texture --------------------------------------------------------------------------------- */

/* A number 0..1 that depends on two whole numbers only. */
static double chance(int a, int b)
{
    uint32_t h = (uint32_t)a * 374761393u + (uint32_t)b * 668265263u;
    h = (h ^ h >> 13) * 1274126177u;
    return ((h ^ h >> 16) & 0xFFFF) / 65535.0;
}

/* Smooth noise along a line, 0..1. */
static double wave(double t, int seed)
{
    int i = (int)floor(t);
    double f = t - i;
    f = f * f * (3 - 2 * f);
    return chance(i, seed) * (1 - f) + chance(i + 1, seed) * f;
}

/* The outline of a ridge: height at x, with finer and finer detail. */
static double ridge(double x, int seed)
{
    return 0.6 * wave(4 * x, seed) + 0.25 * wave(10 * x, seed + 1) + 0.15 * wave(26 * x, seed + 2);
}

/* ---- The pictures ---------------------------------------------------------------------------- */

static void sunset(point *p)
{
    double glow = hypot(p->x - 0.5, p->y - 0.56), d = p->y - 0.6;
    double row = floor(1.6 / (d + 0.035)); /* of waves */
    sky(p, 0, 0x2B2A6B, 0.3, 0xB0447E);
    sky(p, 0.3, 0xB0447E, 0.6, 0xFFA64D);
    mix(p, 0.75 - 1.9 * glow, 0xFFE08A);
    paint(p, oval(p, 0.25, 0.22, 0.17, 0.025) || oval(p, 0.33, 0.25, 0.2, 0.02), 0xE0708A);
    paint(p, oval(p, 0.76, 0.33, 0.2, 0.022) || oval(p, 0.68, 0.355, 0.14, 0.018), 0xF0906A);
    paint(p, oval(p, 0.5, 0.56, 0.15, 0.15), 0xFFF0B0);
    sky(p, 0.6, 0xC8605A, 1, 0x1E2A5E);
    if (d > 0) { /* the path of light, broken by waves that come nearer */
        double wide = 0.13 + 0.12 * d + 0.09 * (chance((int)row, 5) - 0.5);
        mix(p, 0.85 * ramp(wide, wide - 0.03, fabs(p->x - 0.5)) * (fmod(row, 2) < 1 ? 1 : 0.35),
            0xFFD27A);
        mix(p, fmod(row, 2) < 1 ? 0.08 : 0, 0xFFFFFF);
    }
    paint(p, triangle(p, 0.17, 0.44, 0.17, 0.62, 0.27, 0.62), 0x2A1B3D); /* a sailing boat */
    paint(p, triangle(p, 0.155, 0.47, 0.155, 0.62, 0.09, 0.62), 0x3A2550);
    paint(p, p->y > 0.635 && p->y < 0.67 && fabs(p->x - 0.175) < 0.11 - (p->y - 0.635), 0x1A1028);
}

static void mountains(point *p)
{
    double far_top = 0.50 - 0.22 * ridge(p->x + 2, 7), peak, snow;
    sky(p, 0, 0x3F8FE0, 0.7, 0xD6EEFF);
    cloud(p, 0.78, 0.16, 0.12, 0xFFFFFF);
    cloud(p, 0.18, 0.24, 0.08, 0xF4FAFF);
    paint(p, p->y > far_top, 0x9DB8DC);
    peak = 0.16 + 1.05 * fabs(p->x - 0.42) - 0.12 * ridge(p->x * 1.6, 31) + 0.06;
    if (0.30 + 0.9 * fabs(p->x - 0.85) < peak) peak = 0.30 + 0.9 * fabs(p->x - 0.85);
    peak += 0.035 * (wave(30 * p->x, 3) - 0.5);
    paint(p, p->y > peak, 0x5B6B8C);
    shade(p, p->y > peak && p->x > 0.42 + 0.25 * (p->y - 0.2) + 0.05 * wave(20 * p->y, 9) &&
          p->x < 0.68, 0.72); /* the side away from the sun */
    shade(p, p->y > peak && p->x > 0.86 + 0.2 * (p->y - 0.3), 0.72);
    snow = peak + 0.13 + 0.07 * (wave(22 * p->x, 4) - 0.5) - 0.25 * (peak - 0.2);
    if (p->y > peak && p->y < snow) mix(p, 0.9, p->x > 0.44 && p->x < 0.66 ? 0xC9D8F0 : 0xFFFFFF);
    paint(p, p->y > 0.64 - 0.05 * wave(3 * p->x, 2), 0x2F6B45);
    paint(p, p->y > 0.66 && wave(40 * p->x, 12) * 0.06 + 0.60 < p->y && p->y < 0.7, 0x1F5237);
    sky(p, 0.70, 0x5FA8D8, 0.88, 0x2E6FA8); /* a lake */
    mix(p, p->y > 0.70 && p->y < 0.88 && wave(60 * p->y, 6) > 0.7 ? 0.35 : 0, 0xD6EEFF);
    paint(p, p->y > 0.87 - 0.05 * sin(5 * p->x), 0x6FBF4B);
    shade(p, p->y > 0.87 - 0.05 * sin(5 * p->x), 0.9 + 0.2 * wave(30 * p->x, 40));
}

static void house(point *p)
{
    int k;
    sky(p, 0, 0x66B8F0, 0.75, 0xDDF3FF);
    sun(p, 0.86, 0.14, 0.085, 0xFFD93B);
    cloud(p, 0.3, 0.13, 0.1, 0xFFFFFF);
    paint(p, p->y > 0.72 - 0.05 * sin(3 * p->x + 0.5), 0x6CC24A);
    shade(p, p->y > 0.85, 0.9);
    paint(p, box(p, 0.11, 0.5, 0.15, 0.76), 0x7A4E2D); /* tree */
    crown(p, 0.13, 0.44, 0.12, 0x3E9B3F);
    crown(p, 0.07, 0.51, 0.075, 0x2F8838);
    crown(p, 0.20, 0.51, 0.075, 0x48A848);
    paint(p, box(p, 0.68, 0.24, 0.75, 0.45), 0xA8452F); /* chimney, house, roof */
    paint(p, box(p, 0.33, 0.47, 0.83, 0.80), 0xFCE7BE);
    shade(p, box(p, 0.33, 0.47, 0.83, 0.52), 0.82);
    paint(p, triangle(p, 0.26, 0.49, 0.58, 0.20, 0.90, 0.49), 0xD1442F);
    for (k = 0; k < 5; k++) /* rows of tiles */
        shade(p, triangle(p, 0.26, 0.49, 0.58, 0.20, 0.90, 0.49) &&
              fabs(p->y - 0.29 - 0.045 * k) < 0.006, 0.78);
    paint(p, box(p, 0.52, 0.60, 0.64, 0.80), 0x7B4A2A);
    paint(p, oval(p, 0.615, 0.705, 0.012, 0.012), 0xFFD36B);
    for (k = 0; k < 2; k++) {
        double x = k ? 0.68 : 0.37;
        paint(p, box(p, x - 0.012, 0.568, x + 0.112, 0.702), 0xFFFFFF);
        paint(p, box(p, x, 0.58, x + 0.1, 0.69), 0x6FB7E0);
        paint(p, box(p, x + 0.045, 0.58, x + 0.055, 0.69) || box(p, x, 0.63, x + 0.1, 0.64),
              0xFFFFFF);
    }
    paint(p, p->y > 0.80 && fabs(p->x - 0.58 + 0.1 * (p->y - 0.8)) < 0.05 + 0.35 * (p->y - 0.8),
          0xE3C998); /* path */
    for (k = 0; k < 9; k++) { /* flowers */
        double x = 0.05 + 0.11 * k, y = 0.88 + 0.07 * chance(k, 3);
        if (fabs(x - 0.57) < 0.13) continue;
        paint(p, oval(p, x, y, 0.022, 0.022),
              k % 3 == 0 ? 0xFF5C8A : k % 3 == 1 ? 0xFFE14D : 0xFFFFFF);
        paint(p, oval(p, x, y, 0.008, 0.008), 0xE08A00);
    }
}

static void flower(point *p)
{
    double r = hypot(p->x - 0.5, p->y - 0.4), pi = 3.14159265358979;
    int k;
    sky(p, 0, 0xB8E07A, 1, 0x2F7D3B);
    for (k = 0; k < 6; k++) /* soft spots of light */
        mix(p, 0.45 * ramp(0.14, 0.05, hypot(p->x - chance(k, 1), p->y - chance(k, 2))), 0xE8F7A8);
    paint(p, stick(p, 0.5, 0.45, 0.47, 1.05, 0.022), 0x2C6E2F);
    paint(p, leaf(p, 0.35, 0.80, 0.15, 0.055, 0.55), 0x3C8F3C);
    paint(p, leaf(p, 0.62, 0.86, 0.16, 0.055, -0.55), 0x4BA246);
    shade(p, stick(p, 0.24, 0.73, 0.46, 0.87, 0.006), 0.8);
    shade(p, stick(p, 0.76, 0.78, 0.49, 0.94, 0.006), 0.8);
    for (k = 0; k < 13; k++) {
        double a = 2 * pi * (k + 0.5) / 13, x = 0.5 + 0.23 * cos(a), y = 0.4 + 0.23 * sin(a);
        paint(p, leaf(p, x, y, 0.135, 0.062, a), 0xF08A00);
    }
    for (k = 0; k < 13; k++) {
        double a = 2 * pi * k / 13, x = 0.5 + 0.21 * cos(a), y = 0.4 + 0.21 * sin(a);
        int inside = leaf(p, x, y, 0.135, 0.055, a);
        paint(p, inside, 0xFFCB1F);
        shade(p, inside, 0.86 + 0.7 * r);
    }
    ball(p, 0.5, 0.4, 0.135, 0x7A431B);
    for (k = 0; k < 44 && r < 0.13; k++) { /* seeds on a spiral */
        double a = 2.39996 * k, q = 0.0187 * sqrt(k);
        paint(p, oval(p, 0.5 + q * cos(a), 0.4 + q * sin(a), 0.0075, 0.0075),
              k < 22 ? 0xB97A2E : 0x4A2610);
    }
}

static void fruit(point *p)
{
    int bowl;
    sky(p, 0, 0xF7E3C0, 0.66, 0xEBC48F);
    paint(p, p->y > 0.66, 0x9A5B2E); /* table, with grain */
    shade(p, p->y > 0.66, 0.88 + 0.24 * wave(5 * p->x + 40 * p->y, 8));
    mix(p, 0.55 * ramp(1.0, 0.55, hypot((p->x - 0.52) / 0.42, (p->y - 0.90) / 0.075)), 0x3A1E0C);
    ball(p, 0.56, 0.37, 0.135, 0x8FC63B); /* green apple */
    paint(p, stick(p, 0.56, 0.27, 0.585, 0.20, 0.011), 0x6B4320);
    paint(p, leaf(p, 0.635, 0.215, 0.06, 0.025, -0.35), 0x3E9B3F);
    ball(p, 0.74, 0.47, 0.135, 0xFF9A1F); /* orange */
    ball(p, 0.31, 0.45, 0.155, 0xD8232A); /* red apple */
    paint(p, stick(p, 0.31, 0.325, 0.29, 0.24, 0.011), 0x5E3A1A);
    paint(p, leaf(p, 0.235, 0.255, 0.055, 0.022, 0.4), 0x57A83F);
    if (oval(p, 0.50, 0.36, 0.36, 0.27) && !oval(p, 0.47, 0.27, 0.345, 0.27) && p->x > 0.2) {
        paint(p, 1, 0xFFDD3C); /* banana */
        shade(p, !oval(p, 0.475, 0.30, 0.35, 0.27), 0.88);
    }
    ball(p, 0.475, 0.555, 0.075, 0x7B3FA0); /* grapes */
    ball(p, 0.565, 0.575, 0.075, 0x6A2F93);
    ball(p, 0.645, 0.565, 0.075, 0x8C4FB5);
    bowl = oval(p, 0.5, 0.56, 0.38, 0.33) && p->y > 0.60;
    paint(p, bowl, 0x2F86C1);
    shade(p, bowl, 1.22 - 1.0 * fabs(p->x - 0.40));
    paint(p, bowl && fabs(p->y - 0.70) < 0.018, 0xF4F8FB);
    paint(p, box(p, 0.125, 0.585, 0.875, 0.615), 0x5BB0E3);
}

static void fish(point *p)
{
    double u = (p->x - 0.47) / 0.29, v, body;
    int k, inside;
    sky(p, 0, 0x58C9E8, 1, 0x0B4F8A);
    for (k = 0; k < 3; k++) /* rays of light */
        mix(p, 0.22 * ramp(0.06, 0.0, fabs(p->x - 0.12 - 0.25 * k + 0.35 * p->y)) * (1 - p->y),
            0xFFFFFF);
    paint(p, p->y > 0.88 + 0.03 * sin(9 * p->x), 0xE8D4A0);
    shade(p, p->y > 0.88 + 0.03 * sin(9 * p->x), 0.9 + 0.2 * wave(24 * p->x, 11));
    for (k = 0; k < 5; k++) { /* weed */
        double x = (k < 3 ? 0.06 + 0.05 * k : 0.70 + 0.06 * k) + 0.018 * sin(22 * p->y + 2 * k);
        paint(p, fabs(p->x - x) < 0.016 && p->y > 0.5 + 0.14 * chance(k, 9) && p->y < 0.93,
              k % 2 ? 0x2E9E5B : 0x1F7F4A);
    }
    paint(p, leaf(p, 0.84, 0.38, 0.12, 0.06, -0.6) || leaf(p, 0.84, 0.55, 0.12, 0.06, 0.6),
          0xF26A1B);
    paint(p, leaf(p, 0.50, 0.285, 0.17, 0.075, 0.12), 0xE85A12); /* fins */
    paint(p, leaf(p, 0.50, 0.655, 0.10, 0.055, -0.5), 0xE85A12);
    v = p->y - 0.465;
    body = 0.20 * sqrt(clamp(1 - u * u)) * (1 - 0.25 * u);
    inside = (fabs(v) < body) || (box(p, 0.70, 0.42, 0.78, 0.51));
    paint(p, inside, 0xFF7A1F);
    for (k = 0; k < 3; k++) { /* white bands with dark edges */
        double x = 0.335 + 0.17 * k + 0.25 * v * v * (k ? 4 : -6);
        paint(p, inside && fabs(p->x - x) < 0.045 - 0.007 * k, 0x20202A);
        paint(p, inside && fabs(p->x - x) < 0.033 - 0.007 * k, 0xFFFFFF);
    }
    shade(p, inside, 1.12 - 0.9 * (v + 0.12));
    paint(p, leaf(p, 0.45, 0.53, 0.075, 0.035, 0.7), 0xF26A1B);
    paint(p, oval(p, 0.255, 0.43, 0.034, 0.034), 0xFFFFFF);
    paint(p, oval(p, 0.25, 0.432, 0.021, 0.021), 0x101018);
    paint(p, oval(p, 0.244, 0.424, 0.007, 0.007), 0xFFFFFF);
    paint(p, stick(p, 0.188, 0.50, 0.222, 0.515, 0.006), 0x7A2A08);
    for (k = 0; k < 5; k++) { /* bubbles */
        double x = 0.10 + 0.05 * chance(k, 21), y = 0.36 - 0.075 * k, r = 0.013 + 0.005 * k;
        mix(p, oval(p, x, y, r, r) ? 0.75 : 0, 0xD8F6FF);
        mix(p, oval(p, x, y, r - 0.007, r - 0.007) ? 0.6 : 0, 0x58C9E8);
    }
}

static void balloon(point *p)
{
    static const int stripes[4] = {0xE8352E, 0xFFD23F, 0x2C7DD1, 0xFFFFFF};
    double u, wide, y = (p->y - 0.36) / 0.27, turn;
    int inside;
    sky(p, 0, 0x3D9BE9, 1, 0xF0FAFF);
    cloud(p, 0.17, 0.30, 0.12, 0xFFFFFF);
    cloud(p, 0.85, 0.16, 0.11, 0xF6FBFF);
    cloud(p, 0.84, 0.56, 0.1, 0xFFFFFF);
    paint(p, p->y > 0.84 - 0.05 * sin(4 * p->x + 1), 0x8CCB5E);
    paint(p, p->y > 0.90 - 0.05 * sin(5 * p->x + 4), 0x5FAE4A);
    wide = y < 0 ? sqrt(clamp(1 - y * y)) : y < 1.12 ? 1 - 0.62 * y * y * (1.06 - 0.1 * y) : 0;
    wide *= 0.27;
    inside = p->y > 0.09 && p->y < 0.66 && fabs(p->x - 0.48) < wide;
    if (inside) { /* stripes run from pole to pole: equal steps of the angle around the axis */
        u = (p->x - 0.48) / wide;
        turn = (asin(u) + 1.5707963) / 3.1415927 * 8;
        paint(p, 1, stripes[(int)turn % 4]);
        paint(p, fabs(p->y - 0.38) < 0.028, 0x23366B);
        shade(p, 1, 1.06 - 0.38 * ramp(-0.2, 1, u));
        mix(p, 0.35 * ramp(0.13, 0.0, hypot(p->x - 0.38, p->y - 0.23)), 0xFFFFFF);
    }
    paint(p, stick(p, 0.41, 0.655, 0.435, 0.77, 0.005) || stick(p, 0.55, 0.655, 0.525, 0.77, 0.005),
          0x4A3220);
    paint(p, box(p, 0.425, 0.765, 0.535, 0.845), 0x9A6534);
    shade(p, box(p, 0.425, 0.765, 0.535, 0.845) && fmod(p->y * 60, 1) < 0.4, 0.8);
    paint(p, box(p, 0.418, 0.758, 0.542, 0.775), 0x6B4320);
}

static void wheel(point *p, double x)
{
    int k;
    paint(p, oval(p, x, 0.735, 0.105, 0.105), 0x1D1F26);
    paint(p, oval(p, x, 0.735, 0.062, 0.062), 0xD5DAE2);
    for (k = 0; k < 5; k++) {
        double a = 1.2566 * k + 0.3;
        paint(p, stick(p, x, 0.735, x + 0.05 * cos(a), 0.735 + 0.05 * sin(a), 0.007), 0x7C8594);
    }
    paint(p, oval(p, x, 0.735, 0.018, 0.018), 0x4A505C);
}

static void car(point *p)
{
    int body, cabin, glass, k;
    sky(p, 0, 0xFFC98A, 0.55, 0xFFF1D0);
    sun(p, 0.2, 0.17, 0.075, 0xFFF6C8);
    for (k = 0; k < 9; k++) { /* a town behind */
        double x = 0.115 * k - 0.02, top = 0.52 - 0.26 * chance(k, 77);
        paint(p, box(p, x, top, x + 0.10, 0.7), k % 2 ? 0xC79AA8 : 0xB287A0);
        if (box(p, x, top, x + 0.10, 0.7) && fmod(p->x * 40, 1) < 0.45 && fmod(p->y * 28, 1) < 0.4)
            mix(p, 0.5, 0xFFE6B8);
    }
    paint(p, p->y > 0.60, 0x7FB069);
    paint(p, p->y > 0.68, 0x565B66);
    paint(p, p->y > 0.68 && p->y < 0.695, 0xD8D8D0);
    paint(p, p->y > 0.905 && p->y < 0.925 && fmod(p->x * 4 + 0.3, 1) < 0.6, 0xF4F0D8);
    mix(p, 0.5 * ramp(1, 0.6, hypot((p->x - 0.5) / 0.46, (p->y - 0.835) / 0.04)), 0x101014);
    cabin = oval(p, 0.49, 0.52, 0.25, 0.21) && p->y < 0.53;
    body = box(p, 0.07, 0.52, 0.93, 0.74) && !(p->x > 0.80 && left_of(p, 0.80, 0.50, 0.94, 0.60));
    body = body || oval(p, 0.13, 0.63, 0.09, 0.11) || oval(p, 0.87, 0.66, 0.09, 0.085);
    paint(p, cabin || body, 0xD92B2B);
    shade(p, body && p->y > 0.64, 0.8);
    shade(p, body && fabs(p->y - 0.555) < 0.012, 1.25);
    glass = oval(p, 0.49, 0.525, 0.21, 0.165) && p->y < 0.515;
    paint(p, glass, 0xA9DDF3);
    mix(p, glass && fmod(p->x + 0.6 * p->y, 0.2) < 0.045 ? 0.6 : 0, 0xFFFFFF);
    paint(p, glass && fabs(p->x - 0.49) < 0.014, 0xD92B2B);
    paint(p, stick(p, 0.56, 0.58, 0.61, 0.58, 0.009), 0x7A1414);
    paint(p, oval(p, 0.915, 0.625, 0.03, 0.035), 0xFFF6B8);
    paint(p, box(p, 0.055, 0.58, 0.09, 0.64), 0xFF8A3C);
    paint(p, box(p, 0.04, 0.715, 0.16, 0.75) || box(p, 0.84, 0.715, 0.965, 0.75), 0xB8BEC8);
    wheel(p, 0.265);
    wheel(p, 0.735);
}

/* A fir of five tiers, its foot at (x, y). */
static void fir(point *p, double x, double y, double height, int colour)
{
    int k;
    paint(p, box(p, x - 0.03 * height, y - 0.15 * height, x + 0.03 * height, y), 0x4A3020);
    for (k = 0; k < 5; k++) {
        double foot = y - height * (0.10 + 0.16 * k), half = height * (0.27 - 0.042 * k);
        int inside = triangle(p, x - half, foot, x, foot - 0.30 * height, x + half, foot);
        paint(p, inside, colour);
        shade(p, inside && p->x > x + 0.05 * half, 0.82);
        shade(p, inside && p->y > foot - 0.035 * height, 0.86);
    }
}

static void forest(point *p)
{
    int k;
    sky(p, 0, 0xFCE7B2, 0.8, 0xC8E3C0);
    mix(p, 0.9 * ramp(0.28, 0.0, hypot(p->x - 0.62, p->y - 0.16)), 0xFFF9DC);
    for (k = 0; k < 9; k++) fir(p, 0.12 * k + 0.02, 0.66, 0.36 + 0.16 * chance(k, 4), 0xA5C9A8);
    mix(p, 0.35, 0xE6F0D0); /* mist between the rows */
    for (k = 0; k < 7; k++) fir(p, 0.165 * k + 0.01, 0.74, 0.42 + 0.2 * chance(k, 14), 0x5E9E6E);
    mix(p, 0.18, 0xE6F0D0);
    paint(p, p->y > 0.72 - 0.03 * sin(6 * p->x), 0x7DB356);
    if (p->y > 0.72) /* path */
        paint(p, fabs(p->x - 0.52 - 0.12 * sin(7 * (p->y - 0.7))) < 0.02 + 0.42 * (p->y - 0.72),
              0xDCC08A);
    fir(p, 0.15, 0.88, 0.74, 0x1F6B3C);
    fir(p, 0.89, 0.90, 0.82, 0x17592F);
    fir(p, 0.33, 0.79, 0.42, 0x2E8049);
    shade(p, p->y > 0.9, 0.9);
    for (k = 0; k < 3; k++) { /* toadstools */
        double x = 0.27 + 0.05 * k, y = 0.93 - 0.02 * (k % 2);
        paint(p, box(p, x - 0.010, y, x + 0.010, y + 0.045), 0xFFF4E0);
        paint(p, oval(p, x, y, 0.032, 0.026) && p->y < y + 0.006, 0xE03A2E);
        paint(p, oval(p, x - 0.011, y - 0.010, 0.006, 0.005) || oval(p, x + 0.012, y - 0.007, 0.006,
              0.005), 0xFFFFFF);
    }
}

/* The town as it stands over the water line at 0.72; the water shows it again upside down. */
static void night_town(point *p)
{
    double light;
    int k, column, floor_number;
    sky(p, 0, 0x0B1038, 0.75, 0x4A3A7E);
    for (k = 0; k < 16; k++)
        paint(p, oval(p, chance(k, 50), 0.50 * chance(k, 51), 0.004, 0.004), 0xD8DCFF);
    mix(p, 0.5 * ramp(0.24, 0.05, hypot(p->x - 0.77, p->y - 0.19)), 0xB8B4E8);
    paint(p, oval(p, 0.77, 0.19, 0.088, 0.088) && !oval(p, 0.735, 0.17, 0.078, 0.078), 0xFFF6C8);
    for (k = 0; k < 13; k++)
        paint(p, box(p, 0.08 * k, 0.58 - 0.22 * chance(k, 61), 0.08 * k + 0.07, 0.73), 0x2A2A5C);
    for (k = 0; k < 8; k++) {
        double x = 0.128 * k - 0.01, wide = 0.105, top = 0.56 - 0.34 * chance(k, 67);
        if (!box(p, x, top, x + wide, 0.73)) continue;
        paint(p, 1, k % 2 ? 0x151A3E : 0x1C2149);
        column = (int)((p->x - x) / 0.035);
        floor_number = (int)((p->y - top) / 0.047);
        light = chance(column + 7 * k, floor_number + 90);
        if (column < 3 && fabs(p->x - x - 0.035 * column - 0.0175) < 0.0105 && light > 0.42 &&
            fabs(p->y - top - 0.047 * floor_number - 0.024) < 0.014)
            paint(p, 1, light > 0.88 ? 0xFFA860 : 0xFFE28A);
    }
    paint(p, stick(p, 0.435, 0.21, 0.435, 0.36, 0.004), 0x8088B0);
    paint(p, oval(p, 0.435, 0.205, 0.011, 0.011), 0xFF4A4A);
}

static void city(point *p)
{
    point mirror = *p;
    double ripple = 0.012 * sin(120 * p->y) * (p->y - 0.7) * 6;
    if (p->y < 0.72) {
        night_town(p);
        return;
    }
    mirror.y = 1.44 - p->y - (p->y - 0.72) * 0.7;
    mirror.x += ripple;
    night_town(&mirror);
    p->rgb[0] = mirror.rgb[0];
    p->rgb[1] = mirror.rgb[1];
    p->rgb[2] = mirror.rgb[2];
    mix(p, 0.5 + 0.9 * (p->y - 0.72), 0x10184A);
    mix(p, p->y < 0.732 ? 0.7 : 0, 0x8A7AC0);
}

static void butterfly(point *p)
{
    point half = *p; /* both sides alike: one is painted, the other is its mirror */
    int wing, rim, k;
    sky(p, 0, 0xFFE9F0, 1, 0x9FD8B0);
    for (k = 0; k < 11; k++) { /* meadow out of focus */
        double x = chance(k, 31), y = 0.45 + 0.6 * chance(k, 32);
        mix(p, 0.6 * ramp(0.09, 0.03, hypot(p->x - x, p->y - y)), k % 3 == 0 ? 0xFF9EC0 : k % 3 == 1
            ? 0xFFF0A0 : 0xC9B6FF);
    }
    half.x = 0.5 + fabs(p->x - 0.5);
    wing = leaf(&half, 0.715, 0.345, 0.255, 0.165, -0.62) ||
           leaf(&half, 0.655, 0.655, 0.185, 0.135, 0.75);
    rim = !(leaf(&half, 0.705, 0.352, 0.215, 0.125, -0.62) ||
            leaf(&half, 0.648, 0.648, 0.148, 0.098, 0.75));
    paint(p, wing, rim ? 0x1B1B2E : 0x2F7FE8);
    if (wing && !rim) { /* from light blue by the body to violet at the tips */
        mix(p, ramp(0.02, 0.36, hypot(half.x - 0.5, half.y - 0.5)), 0x6A3FD0);
        mix(p, ramp(0.22, 0.03, hypot(half.x - 0.52, half.y - 0.5)), 0x7FE3FF);
        for (k = 0; k < 6; k++) {
            double a = -1.15 + 0.42 * k;
            paint(p, stick(&half, 0.51, 0.5, 0.51 + 0.4 * cos(a), 0.5 + 0.4 * sin(a), 0.005),
                  0x1B1B2E);
        }
        paint(p, oval(&half, 0.765, 0.30, 0.035, 0.035) || oval(&half, 0.69, 0.69, 0.032, 0.032),
              0xFFC23C);
        paint(p, oval(&half, 0.765, 0.30, 0.016, 0.016) || oval(&half, 0.69, 0.69, 0.014, 0.014),
              0xD9352B);
    }
    for (k = 0; k < 5; k++) {
        double a = -1.05 + 0.20 * k, x = 0.505 + 0.435 * cos(a), y = 0.52 + 0.435 * sin(a);
        paint(p, wing && rim && oval(&half, x, y, 0.011, 0.011), 0xFFFFFF);
    }
    paint(p, stick(&half, 0.503, 0.32, 0.57, 0.15, 0.007), 0x2A1B18);
    paint(p, oval(&half, 0.572, 0.145, 0.015, 0.015), 0x2A1B18);
    paint(p, oval(p, 0.5, 0.52, 0.028, 0.215), 0x3A2620);
    if (fmod(p->y * 24, 1) < 0.35 && p->y > 0.48)
        paint(p, oval(p, 0.5, 0.52, 0.028, 0.215), 0x6B4A36);
    paint(p, oval(p, 0.5, 0.325, 0.036, 0.036), 0x2A1B18);
}

static void rainbow(point *p)
{
    static const int bands[7] = {0xE8352E, 0xFF8A1F, 0xFFE03B, 0x46B84A, 0x2C8FE0, 0x3F4DC0,
                                 0x8A3FB0};
    double r = hypot(p->x - 0.48, (p->y - 0.74) * 1.05);
    int band = (int)((0.56 - r) / 0.026), k;
    sky(p, 0, 0x6C8FB8, 0.75, 0xDCEBF5);
    mix(p, r < 0.56 ? 0.22 : 0, 0xFFFFFF); /* brighter inside the bow */
    if (r < 0.56 && band < 7) mix(p, 0.78, bands[band]);
    cloud(p, 0.15, 0.13, 0.14, 0xE8EEF5);
    cloud(p, 0.86, 0.19, 0.13, 0xF7FAFD);
    paint(p, p->y > 0.66 - 0.07 * sin(3.2 * p->x + 0.4), 0x8FCF5A);
    paint(p, p->y > 0.76 - 0.06 * sin(3.6 * p->x + 3.4), 0x5FB04A);
    for (k = 0; k < 7; k++) { /* furrows of flowers towards the viewer */
        double x = 0.5 + (0.17 * k - 0.51) * (p->y - 0.5) * 2.6;
        if (p->y > 0.84 && fabs(p->x - x) < 0.05 * (p->y - 0.5) &&
            chance((int)(p->x * 60), (int)(p->y * 60)) > 0.35)
            paint(p, 1, k % 3 == 0 ? 0xF0489A : k % 3 == 1 ? 0xFFD93B : 0xA85FE0);
    }
    paint(p, box(p, 0.755, 0.56, 0.785, 0.80), 0x6B4526);
    crown(p, 0.77, 0.48, 0.125, 0x3C8F3F);
    crown(p, 0.70, 0.55, 0.085, 0x2F8038);
    crown(p, 0.845, 0.55, 0.085, 0x4AA34A);
}

/* ---- The files ------------------------------------------------------------------------------- */

static void render(void (*picture)(point *), unsigned char *pixels)
{
    int y, x, k, i;
    for (y = 0; y < SIZE; y++)
        for (x = 0; x < SIZE; x++) {
            double sum[3] = {0, 0, 0};
            for (i = 0; i < FINE * FINE; i++) {
                point p = {0, 0, {0, 0, 0}};
                p.x = (x + (i % FINE + 0.5) / FINE) / SIZE;
                p.y = (y + (double)(i / FINE) / FINE + 0.5 / FINE) / SIZE;
                picture(&p);
                for (k = 0; k < 3; k++) sum[k] += p.rgb[k];
            }
            for (k = 0; k < 3; k++)
                *pixels++ = (unsigned char)(255 * clamp(sum[k] / (FINE * FINE)) + 0.5);
        }
}

int main(void)
{
    static const char *const names[12] = {"sunset", "mountains", "house", "flower", "fruit", "fish",
                                          "balloon", "car", "forest", "city", "butterfly",
                                          "rainbow"};
    static void (*const pictures[12])(point *) = {sunset, mountains, house, flower, fruit, fish,
                                                  balloon, car, forest, city, butterfly, rainbow};
    static unsigned char pixels[SIZE * SIZE * 3];
    char path[EX_PATH], head[32];
    int i, failed = 0;
    mkdir("pictures", 0777);
    mkdir("pictures_png", 0777);
    for (i = 0; i < 12; i++) {
        ex_bytes ppm = {NULL, 0, 0, 0};
        render(pictures[i], pixels);
        snprintf(head, sizeof head, "P6\n%d %d\n255\n", SIZE, SIZE);
        ex_bytes_add(&ppm, head, strlen(head));
        ex_bytes_add(&ppm, pixels, sizeof pixels);
        snprintf(path, sizeof path, "pictures/%s.ppm", names[i]);
        failed |= ex_bytes_write(&ppm, path);
        snprintf(path, sizeof path, "pictures_png/%s.png", names[i]);
        failed |= ex_png_write(path, pixels, SIZE, SIZE, 3);
    }
    return failed ? 1 : 0;
}
