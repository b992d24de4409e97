/* emulation.h - what a test may ask of the emulated CUDA runtime. C and C++. */
#ifndef CTR_EMULATION_H
#define CTR_EMULATION_H
#ifdef __cplusplus
extern "C" {
#endif

/* The nth call from now (1: the next) of the function of this name returns the status; "launch": of
   a kernel. */
void emu_fail(const char *call, long nth, int status);
long emu_calls(const char *call); /* how often it was called so far */
long emu_memory(void);            /* blocks of device memory that are not freed */

/* Of the emulation itself: counts the call, and says whether it shall fail. */
int emu_failing(const char *call, int *status);

#ifdef __cplusplus
}
#endif
#endif
