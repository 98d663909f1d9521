/* A Vulkan layer with which SAPIEN 2.2, and so the original SimplerEnv, renders on a machine without a GPU.
 *
 * SAPIEN 2.2 demands VK_KHR_external_semaphore_fd of its device, which Mesa's software driver lacks; it uses it for
 * nothing but CUDA. The loader takes the extension as present, because this layer's manifest names it, and the layer
 * leaves it out of the list that reaches the driver. Build it, and let the interpreter of SimplerEnv find it:
 *
 *     cc -O2 -shared -fPIC -fvisibility=hidden -o "$FOLDER/libdrop_semaphore_fd.so" drop_semaphore_fd.c
 *     cp drop_semaphore_fd.json "$FOLDER"
 *     export VK_LAYER_PATH="$FOLDER" VK_INSTANCE_LAYERS=VK_LAYER_VLA_RAZOR_drop_semaphore_fd
 *
 * Structures and numbers are those of vulkan_core.h and vk_layer.h (Vulkan 1.0), written out so that no headers need be
 * installed.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define FAILED (-3) /* VK_ERROR_INITIALIZATION_FAILED */

typedef void (*Function)(void);
typedef Function (*GetAddress)(void *handle, const char *name);
typedef int (*CreateInstance)(const void *info, const void *allocator, void **instance);
typedef int (*CreateDevice)(void *physical_device, const void *info, const void *allocator, void **device);

typedef struct Link { /* VkLayerInstanceLink and VkLayerDeviceLink begin alike */
    struct Link *next;
    GetAddress instance_address;
    GetAddress device_address; /* of a VkLayerDeviceLink only */
} Link;

typedef struct Chain { /* VkLayerInstanceCreateInfo, VkLayerDeviceCreateInfo */
    int type;
    struct Chain *next;
    int function;
    Link *link;
} Chain;

typedef struct DeviceCreateInfo { /* VkDeviceCreateInfo */
    int type;
    const void *next;
    uint32_t flags, queue_count;
    const void *queues;
    uint32_t layer_count;
    const char *const *layers;
    uint32_t extension_count;
    const char *const *extensions;
    const void *features;
} DeviceCreateInfo;

enum { LOADER_INSTANCE = 47, LOADER_DEVICE = 48, LINK_INFO = 0 };

static void *current_instance;
static GetAddress next_instance_address, next_device_address;

/* The link to the next layer or driver, and the chain moved on past it, as every layer must do. */
static Link *take_link(const void *info, int type) {
    Chain *chain = ((Chain *)info)->next;
    while (chain && !(chain->type == type && chain->function == LINK_INFO)) chain = chain->next;
    if (!chain || !chain->link) return NULL;
    Link *link = chain->link;
    chain->link = link->next;
    return link;
}

static int create_instance(const void *info, const void *allocator, void **instance) {
    Link *link = take_link(info, LOADER_INSTANCE);
    if (!link) return FAILED;
    next_instance_address = link->instance_address;
    CreateInstance next = (CreateInstance)next_instance_address(NULL, "vkCreateInstance");
    int result = next ? next(info, allocator, instance) : FAILED;
    if (result == 0) current_instance = *instance;
    return result;
}

static int create_device(void *physical_device, const void *info, const void *allocator, void **device) {
    Link *link = take_link(info, LOADER_DEVICE);
    if (!link) return FAILED;
    next_device_address = link->device_address;
    CreateDevice next = (CreateDevice)link->instance_address(current_instance, "vkCreateDevice");
    DeviceCreateInfo fewer = *(const DeviceCreateInfo *)info;
    const char **kept = malloc((fewer.extension_count + 1) * sizeof *kept);
    if (!next || !kept) {
        free(kept);
        return FAILED;
    }
    uint32_t count = 0;
    for (uint32_t i = 0; i < fewer.extension_count; i++)
        if (strcmp(fewer.extensions[i], "VK_KHR_external_semaphore_fd") != 0) kept[count++] = fewer.extensions[i];
    fewer.extension_count = count;
    fewer.extensions = kept;
    int result = next(physical_device, &fewer, allocator, device);
    free(kept);
    return result;
}

EXPORT Function vkGetDeviceProcAddr(void *device, const char *name) {
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) return (Function)vkGetDeviceProcAddr;
    return next_device_address ? next_device_address(device, name) : NULL;
}

EXPORT Function vkGetInstanceProcAddr(void *instance, const char *name) {
    if (strcmp(name, "vkGetInstanceProcAddr") == 0) return (Function)vkGetInstanceProcAddr;
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) return (Function)vkGetDeviceProcAddr;
    if (strcmp(name, "vkCreateInstance") == 0) return (Function)create_instance;
    if (strcmp(name, "vkCreateDevice") == 0) return (Function)create_device;
    return next_instance_address ? next_instance_address(instance, name) : NULL;
}
