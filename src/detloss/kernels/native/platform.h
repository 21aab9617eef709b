// What the compiler and the processor are.

#ifndef DETLOSS_PLATFORM_H
#define DETLOSS_PLATFORM_H

#if defined(__x86_64__) && defined(__GNUC__)
#define DETLOSS_X86 1
#endif

#define EXPORT __attribute__((visibility("default")))

#define DETLOSS_TEXT(x) #x
#if defined(__clang__)
#define DETLOSS_TARGET_BEGIN(features) \
  _Pragma(DETLOSS_TEXT(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define DETLOSS_TARGET_END _Pragma("clang attribute pop")
#define DETLOSS_FULL_LENGTH ""
#else
#define DETLOSS_TARGET_BEGIN(features) _Pragma("GCC push_options") _Pragma(DETLOSS_TEXT(GCC target(features)))
#define DETLOSS_TARGET_END _Pragma("GCC pop_options")
#define DETLOSS_FULL_LENGTH ",prefer-vector-width=512"
#endif

#endif
