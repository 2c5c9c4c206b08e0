/* An NVML that does what a file says, for tests of the real Python bindings.
 *
 * FAKE_NVML_FILE is read at each call. Lines: "devices N", "mig 0|1", "throttle BITS",
 * "process PID BYTES" (bytes "na": not available), and "FUNCTION CODE" or "FUNCTION hang",
 * optionally "FUNCTION CODE DEVICE" for one device alone. With "held FOLDER" what is used is the
 * sum of the numbers in that folder's files, of the device as of every process that says
 * "process PID held": test models put there what they hold. With "gone N" the device N is not
 * there any more, and those after it have moved up; "used BYTES N" is what is used of device N.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct device { int index; };
static struct device devices[16];

static int setting(const char *name, long device, char *value, size_t size) {
  const char *path = getenv("FAKE_NVML_FILE");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[384], key[128], text[256];
  int found = 0;
  if (!file) return 0;
  while (fgets(line, sizeof line, file)) {
    long only = -1;
    int fields = sscanf(line, "%127s %255s %ld", key, text, &only);
    if (fields >= 2 && !strcmp(key, name) && (fields < 3 || device < 0 || only == device)) {
      snprintf(value, size, "%s", text);
      found = 1;
    }
  }
  fclose(file);
  return found;
}

static unsigned long number(const char *name, unsigned long otherwise) {
  char value[64];
  return setting(name, -1, value, sizeof value) ? strtoul(value, NULL, 0) : otherwise;
}

/* The code this function shall return; does not return while it shall hang. */
static int code(const char *function, long device) {
  char value[64];
  for (;;) {
    if (!setting(function, device, value, sizeof value)) return 0;
    if (strcmp(value, "hang")) return atoi(value);
    usleep(10000);
  }
}

static unsigned long long held(unsigned long long otherwise) {
  char folder[256], path[512];
  unsigned long long sum = 0, one;
  struct dirent *entry;
  DIR *files;
  if (!setting("held", -1, folder, sizeof folder)) return otherwise;
  files = opendir(folder);
  while (files && (entry = readdir(files))) {
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    file = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
    if (file && fscanf(file, "%llu", &one) == 1) sum += one;
    if (file) fclose(file);
  }
  if (files) closedir(files);
  return sum;
}

#define TRY(function, device)                    \
  do {                                           \
    int result = code(function, device);         \
    if (result) return result;                   \
  } while (0)

EXPORT int nvmlInitWithFlags(unsigned flags) { (void)flags; TRY("nvmlInit", -1); return 0; }
EXPORT int nvmlShutdown(void) { return 0; }
EXPORT const char *nvmlErrorString(int error) { (void)error; return "an unheard-of error"; }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
  TRY("nvmlDeviceGetCount", -1);
  *count = (unsigned)number("devices", 1);
  return 0;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **handle) {
  TRY("nvmlDeviceGetHandleByIndex", (long)index);
  if (index >= number("devices", 1) || index >= 16) return 2;
  if (index >= number("gone", 16)) index++;
  devices[index].index = (int)index;
  *handle = &devices[index];
  return 0;
}

EXPORT int nvmlDeviceGetUUID(struct device *d, char *text, unsigned size) {
  TRY("nvmlDeviceGetUUID", d->index);
  snprintf(text, size, "GPU-fake-%d", d->index);
  return 0;
}

EXPORT int nvmlDeviceGetName(struct device *d, char *text, unsigned size) {
  TRY("nvmlDeviceGetName", d->index);
  snprintf(text, size, "Fake H%d", d->index);
  return 0;
}

EXPORT int nvmlDeviceGetUtilizationRates(struct device *d, unsigned *rates) {
  TRY("nvmlDeviceGetUtilizationRates", d->index);
  if (number("mig", 0)) return 3;
  rates[0] = 73;
  rates[1] = 41;
  return 0;
}

EXPORT int nvmlDeviceGetMemoryInfo(struct device *d, unsigned long long *memory) {
  char value[64];
  TRY("nvmlDeviceGetMemoryInfo", d->index);
  memory[0] = 80ull << 30;
  memory[2] = held(20ull << 30);
  if (setting("used", d->index, value, sizeof value)) memory[2] = strtoull(value, NULL, 0);
  memory[1] = memory[0] - memory[2];
  return 0;
}

EXPORT int nvmlDeviceGetMigMode(struct device *d, unsigned *current, unsigned *pending) {
  TRY("nvmlDeviceGetMigMode", d->index);
  *current = *pending = (unsigned)number("mig", 0);
  return 0;
}

EXPORT int nvmlDeviceGetClockInfo(struct device *d, int type, unsigned *clock) {
  TRY("nvmlDeviceGetClockInfo", d->index);
  *clock = type == 1 ? 1980 : 2619;
  return 0;
}

EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *d, unsigned long long *bits) {
  TRY("nvmlDeviceGetCurrentClocksThrottleReasons", d->index);
  *bits = number("throttle", 0);
  return 0;
}

EXPORT int nvmlDeviceGetPowerUsage(struct device *d, unsigned *milliwatts) {
  TRY("nvmlDeviceGetPowerUsage", d->index);
  *milliwatts = 350500;
  return 0;
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(struct device *d, unsigned *milliwatts) {
  TRY("nvmlDeviceGetEnforcedPowerLimit", d->index);
  *milliwatts = 700000;
  return 0;
}

EXPORT int nvmlDeviceGetTemperature(struct device *d, int sensor, unsigned *celsius) {
  (void)sensor;
  TRY("nvmlDeviceGetTemperature", d->index);
  *celsius = 64;
  return 0;
}

struct process {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
};

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, unsigned *count,
                                                   struct process *processes) {
  const char *path = getenv("FAKE_NVML_FILE");
  FILE *file;
  char line[256], bytes[64];
  unsigned room = *count, found = 0, pid;
  TRY("nvmlDeviceGetComputeRunningProcesses", d->index);
  file = path ? fopen(path, "r") : NULL;
  while (file && fgets(line, sizeof line, file)) {
    if (sscanf(line, "process %u %63s", &pid, bytes) != 2) continue;
    if (processes && found < room) {
      processes[found].pid = pid;
      processes[found].used = strcmp(bytes, "na") ? strtoull(bytes, NULL, 0) : ~0ull;
      if (!strcmp(bytes, "held")) processes[found].used = held(0);
      processes[found].gpu_instance = processes[found].compute_instance = ~0u;
    }
    found++;
  }
  if (file) fclose(file);
  *count = found;
  return found > room ? 7 : 0;
}
